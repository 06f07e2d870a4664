"""Run by a Python with torch and timm: a random network of timm's → its checkpoint in three formats, and its logits.

    python tests/timm_oracle.py NAME CHANNELS POOL FOLDER

torchvision, which timm imports for transforms that nothing here uses, is stood in for.
"""

import argparse
import copy
import importlib.machinery
import sys
import types
from pathlib import Path

import numpy as np

PARTS = ("ops", "ops.misc", "transforms", "transforms.functional", "transforms.v2", "datasets", "models")


class Named(type):
    """A class whose attributes are their own names."""

    def __getattr__(cls, name):
        return name


def stand_in(name):
    def attribute(wanted):
        if wanted.startswith("__"):
            raise AttributeError(wanted)
        return Named(wanted, (), {})

    module = types.ModuleType(name)
    module.__getattr__, module.__path__ = attribute, []
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules[name] = module
    above, _, last = name.rpartition(".")
    if above:
        setattr(sys.modules[above], last, module)


for part in ("torchvision", *(f"torchvision.{part}" for part in (*PARTS, "models.feature_extraction"))):
    stand_in(part)

import timm  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


class GeneralizedMean(torch.nn.Module):
    def __init__(self, keepdim):
        super().__init__()
        self.p, self.keepdim = torch.nn.Parameter(torch.ones(1) * 2.5), keepdim

    def forward(self, x):
        return x.clamp(min=1e-6).pow(self.p).mean((-2, -1), keepdim=self.keepdim).pow(1 / self.p)


def main(name, channels, pool, out):
    torch.manual_seed(0)
    known = "avg" if pool == "gem" else pool
    net = timm.create_model(name, num_classes=1, in_chans=channels, global_pool=known)
    if pool == "gem" and name.startswith("convnext"):
        net.head.global_pool = GeneralizedMean(keepdim=True)
    elif pool == "gem":
        net.global_pool = GeneralizedMean(keepdim=False)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # one batch sets the statistics
        if type(module).__name__.startswith(("BatchNorm", "LayerNorm")):
            module.weight.data.uniform_(0.7, 1.3)
            module.bias.data.uniform_(-0.3, 0.3)
        if getattr(module, "gamma", None) is not None:
            module.gamma.data.uniform_(0.1, 0.5)
    grey = np.kron(np.random.default_rng(0).integers(0, 256, (32, 8)), np.ones((8, 8), np.int64))
    grey = grey.reshape(4, 64, 64).astype(np.uint8)
    mean, std = ((0.5,), (0.25,)) if channels == 1 else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    shape = (1, channels, 1, 1)
    values = torch.tensor(grey[:, None].astype(np.float32) / 255).repeat(1, channels, 1, 1)
    values = (values - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    with torch.no_grad():
        net.train()(values)
        logits = net.eval()(values).numpy()
        exact = copy.deepcopy(net).double()(values.double()).numpy()
    weights = net.state_dict()
    training = {"state_dict": weights, "args": argparse.Namespace(lr=1.0), "metric": np.float64(0.5)}
    torch.save(training, out / "zip.pth.tar")
    torch.save(
        {f"module.{key}": value for key, value in weights.items()},
        out / "old.pth",
        _use_new_zipfile_serialization=False,
    )
    save_file({key: value.contiguous() for key, value in weights.items()}, out / "safe.safetensors")
    rounding = np.abs(exact - logits).max()  # what float32 itself costs in so deep a network of random weights
    np.savez(out / "expected.npz", grey=grey, logits=exact, rounding=rounding, mean=mean, std=std)


main(sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
