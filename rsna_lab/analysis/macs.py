"""A network → the multiplications that one picture costs, counted from its layers."""

from __future__ import annotations

import math
from typing import Any

from rsna_kit.runtime.lazy import require


def count_macs(network: Any) -> int:
    """Multiply-accumulates of one picture in all convolutions and dense layers; the rest is a percent or two.

    Args:
        network: keras.Model of known input size.
    """
    layers = require("keras", "train").layers
    total = 0
    for layer in network.layers:
        if hasattr(layer, "layers"):
            total += count_macs(layer)
        elif isinstance(layer, layers.DepthwiseConv2D | layers.Conv2D | layers.Dense):
            output = math.prod(layer.output.shape[1:])  # each of these numbers is one sum
            kernel = layer.kernel.shape
            terms = math.prod(kernel[:2] if isinstance(layer, layers.DepthwiseConv2D) else kernel[:-1])
            total += output * terms
    return total
