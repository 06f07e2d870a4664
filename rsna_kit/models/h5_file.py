"""An HDF5 weights file of Keras, old or new format → arrays by layer; plain numbers are read and nothing else.

Keras 2 (and `model.save("x.h5")` of Keras 3) lists the layers in attributes: order decides. Keras 3 (`*.weights.h5`)
keeps one group per layer, numbered by class, and notes the layer's name on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsna_kit.runtime.errors import BundleError, one_line
from rsna_kit.runtime.lazy import require

_HDF5 = b"\x89HDF\r\n\x1a\n"
_OTHERS = (  # what a file that is no HDF5 begins with
    (b"PK\x03\x04", "a zip archive: a whole Keras model (*.keras; save its weights alone with "
                    "model.save_weights('NAME.weights.h5')), or PyTorch's format, which holds a pickle"),
    (b"\x80", "a Python pickle, which could execute code and is not opened"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "a gzip archive (unpack it)"),
    (b"<", "a web page, so the download failed"),
    (b"{", "JSON"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file it stands for"),
    (b"", "something else, or an empty file"),
)  # fmt: skip
_MOST_INFLATION = 16  # compressed weights shrink by less than 2; a file that claims more is made to fill memory


@dataclass(frozen=True)
class SavedLayer:
    """One layer as the file has it: its name and its arrays, in the file's order."""

    name: str
    arrays: list[np.ndarray]


@contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """Open an HDF5 file; whatever goes wrong while it is read is one kind of error.

    Yields:
        h5py.File, opened for reading.

    Raises:
        BundleError: another format (named), truncated, damaged, or one that claims more numbers than it can hold.
    """
    with open(path, "rb") as file:
        head = file.read(32)
    if not head.startswith(_HDF5):
        what = next(text for start, text in _OTHERS if head.startswith(start))
        raise BundleError(f"{path}: got {what}; expected an HDF5 weights file (*.h5) of Keras.")
    try:
        with require("h5py", "train").File(path, "r") as opened:
            claimed = sum(data.nbytes for data in _datasets(opened).values())
            if claimed > _MOST_INFLATION * path.stat().st_size:
                raise BundleError(
                    f"{path}: {path.stat().st_size} bytes that claim to hold {claimed}. Use another file."
                )
            yield opened
    except BundleError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        said = f"{path}: truncated or damaged HDF5 ({one_line(error)})"
        raise BundleError(f"{said}. Copy or download it again.") from error


def is_legacy(opened: Any) -> bool:
    """Whether the layers are listed in attributes, as Keras 2 does."""
    return any(name.startswith("layer_names") for name in _root(opened).attrs)


def layers_in_order(opened: Any) -> list[SavedLayer]:
    """The layers with weights of a file in the old format, from the input to the output.

    Raises:
        BundleError: not plain numbers, or a layer that is listed and not there.
    """
    root, datasets = _root(opened), _datasets(opened)
    found = []
    for name in _listed(root, "layer_names"):
        names = _listed(root[name], "weight_names")
        prefix = f"{root.name}/{name}/".replace("//", "/").lstrip("/")
        arrays = []
        for weight in names:
            if prefix + weight not in datasets:
                raise BundleError(f"{opened.filename}: lists {prefix + weight} and does not hold it. Copy it again.")
            arrays.append(_array(opened, datasets[prefix + weight]))
        if arrays:
            found.append(SavedLayer(name, arrays))
    return found


def layers_by_name(opened: Any) -> dict[str, list[np.ndarray]]:
    """The layers with float weights of a file in the new format, an optimiser's left out.

    Raises:
        BundleError: not plain numbers, no names (early Keras 3 did not note them), or one name twice.
    """
    places: dict[str, dict[int, Any]] = {}
    for path, data in _datasets(opened).items():
        place, _, index = path.rpartition("/")
        if place.endswith("vars") and not place.startswith("optimizer") and data.dtype.kind == "f":
            places.setdefault(place, {})[int(index)] = data
    found: dict[str, list[np.ndarray]] = {}
    for place, numbered in places.items():
        name = opened[place].attrs.get("name")
        if not isinstance(name, str) or name in found:
            what = f"two layers called {name}" if isinstance(name, str) else f"no layer's name at {place}"
            raise BundleError(f"{opened.filename}: {what}, expected a file that a Keras of today wrote.")
        found[name] = [_array(opened, numbered[index]) for index in sorted(numbered)]
    return found


def count_arrays(opened: Any) -> int:
    """How many float arrays a file in the new format holds, an optimiser's left out."""
    return sum(data.dtype.kind == "f" and not path.startswith("optimizer") for path, data in _datasets(opened).items())


def _root(opened: Any) -> Any:
    return opened.get("model_weights", opened)


def _datasets(opened: Any) -> dict[str, Any]:
    """Every dataset by its path. Soft and external links are not followed."""
    found: dict[str, Any] = {}
    dataset = require("h5py", "train").Dataset

    def visit(name: str, item: Any) -> None:
        if isinstance(item, dataset):
            found[name] = item

    opened.visititems(visit)
    return found


def _listed(group: Any, name: str) -> list[str]:
    """A list that Keras kept in an attribute, or cut in numbered ones where it was long."""
    parts = [name] if name in group.attrs else []
    while name not in group.attrs and f"{name}{len(parts)}" in group.attrs:
        parts.append(f"{name}{len(parts)}")
    entries = [entry for part in parts for entry in group.attrs[part]]
    return [entry.decode() if isinstance(entry, bytes) else str(entry) for entry in entries]


def _array(opened: Any, data: Any) -> np.ndarray:
    if data.dtype.kind not in "fiu" or data.external or data.is_virtual:
        raise BundleError(
            f"{opened.filename}: {data.name} holds {data.dtype}, or lies in another file; expected plain numbers. "
            "It was not read; use another file."
        )
    array = np.asarray(data[()])
    if not np.isfinite(array).all():
        raise BundleError(f"{opened.filename}: {data.name} holds NaN or infinity. Use another file.")
    return array
