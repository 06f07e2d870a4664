"""A scaled picture → EfficientNet-Lite's feature map, by keras-cv's constructor or the same core layers.

keras-cv imports TensorFlow whatever the backend; on a machine with JAX alone the same layers are built here. Names and
order of the layers are those of keras-cv 0.9, whichever builder made them, so weights files fit both
(`tests/test_models_backbones.py` holds them equal).
"""

from __future__ import annotations

import math
from typing import Any

from rsna_kit.runtime.lazy import require

# github.com/tensorflow/tpu, models/official/efficientnet/lite: no squeeze-excite, ReLU6. Stem and top are not scaled in
# width, nor the first and the last stage in depth.
COEFFICIENTS = {  # width, depth
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
}
_STAGES: dict[str, list[int]] = {
    "stackwise_kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
    "stackwise_num_repeats": [1, 2, 2, 3, 3, 4, 1],
    "stackwise_input_filters": [32, 16, 24, 40, 80, 112, 192],
    "stackwise_output_filters": [16, 24, 40, 80, 112, 192, 320],
    "stackwise_expansion_ratios": [1, 6, 6, 6, 6, 6, 6],
    "stackwise_strides": [1, 2, 2, 2, 1, 2, 1],
}


def build_lite(name: str, scaled: Any, tap: int, drop_path: float) -> Any:
    """Feature map of a scaled picture.

    Args:
        name: key of `COEFFICIENTS`.
        scaled: Keras tensor float (batch, h, w, channels).
        tap: 32: after the last activation; 16: the last sum of the fifth stage.
        drop_path: rate of stochastic depth; block i of n drops `drop_path` * i / n.

    Returns:
        Keras tensor float (batch, ceil(h / 32), ceil(w / 32), 1280), or (batch, ceil(h / 16), ceil(w / 16), 112;
        lite2: 120).
    """
    try:
        from keras_cv.models import EfficientNetLiteBackbone
    except Exception:  # absent, or broken in whatever way
        return lite_from_layers(name, scaled, tap, drop_path)
    width, depth = COEFFICIENTS[name]
    made = EfficientNetLiteBackbone(
        include_rescaling=False,
        width_coefficient=width,
        depth_coefficient=depth,
        # keras-cv divides by the number of blocks of Lite0
        drop_connect_rate=drop_path * sum(_STAGES["stackwise_num_repeats"]) / sum(repeats(name)),
        input_tensor=scaled,
        **_STAGES,
    )
    # `made.output` belongs to a clone of the graph; the layer's first call belongs to ours.
    return made.get_layer(_last(name, tap)).output


def lite_from_layers(name: str, scaled: Any, tap: int, drop_path: float) -> Any:
    """What `build_lite` builds, from core Keras layers."""
    width, _ = COEFFICIENTS[name]
    tensor = _relu6(_convolution(scaled, 32, 3, "stem_", strides=2), "stem_activation")
    counts, done, last = repeats(name), 0, _last(name, tap)
    for stage, (kernel, count, filters, expansion, strides) in enumerate(
        zip(
            _STAGES["stackwise_kernel_sizes"],
            counts,
            _STAGES["stackwise_output_filters"],
            _STAGES["stackwise_expansion_ratios"],
            _STAGES["stackwise_strides"],
            strict=True,
        )
    ):
        for repeat in range(count):
            shape = (kernel, _filters(filters * width), expansion, strides if repeat == 0 else 1)
            block = f"block{stage + 1}{chr(ord('a') + repeat)}_"
            tensor = _block(tensor, shape, drop_path * done / sum(counts), block)
            done += 1
            if last == block + "add":
                return tensor
    return _relu6(_convolution(tensor, 1280, 1, "top_"), last)


def repeats(name: str) -> list[int]:
    """Blocks of each of the seven stages."""
    first, *middle, final = _STAGES["stackwise_num_repeats"]
    return [first, *(math.ceil(count * COEFFICIENTS[name][1]) for count in middle), final]


def _last(name: str, tap: int) -> str:
    """The layer whose output is the map."""
    return "top_activation" if tap == 32 else f"block5{chr(ord('a') + repeats(name)[4] - 1)}_add"


def _filters(wanted: float) -> int:
    """The nearest multiple of 8 that is not more than a tenth below."""
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def _block(tensor: Any, shape: tuple[int, int, int, int], drop: float, name: str) -> Any:
    """Inverted residual: expand, depthwise, project, add."""
    layers = require("keras", "train").layers
    kernel, filters, expansion, strides = shape
    channels, inner = tensor.shape[-1], tensor
    if expansion != 1:
        inner = _relu6(_convolution(inner, channels * expansion, 1, name + "expand_"), name + "expand_activation")
    inner = layers.DepthwiseConv2D(
        kernel,
        strides=strides,
        padding="same",
        use_bias=False,
        depthwise_initializer=_initializer(),
        name=name + "dwconv",
    )(inner)
    inner = _relu6(layers.BatchNormalization(name=name + "bn")(inner), name + "activation")
    inner = _convolution(inner, filters, 1, name + "project_")
    if strides == 1 and channels == filters:
        if drop > 0:
            inner = layers.Dropout(drop, noise_shape=(None, 1, 1, 1), name=name + "drop")(inner)
        inner = layers.Add(name=name + "add")([inner, tensor])
    return inner


def _convolution(tensor: Any, filters: int, kernel: int, name: str, strides: int = 1) -> Any:
    layers = require("keras", "train").layers
    convolution = layers.Conv2D(
        filters,
        kernel,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer=_initializer(),
        name=name + "conv",
    )
    return layers.BatchNormalization(name=name + "bn")(convolution(tensor))


def _relu6(tensor: Any, name: str) -> Any:
    return require("keras", "train").layers.Activation("relu6", name=name)(tensor)


def _initializer() -> Any:
    return require("keras", "train").initializers.VarianceScaling(2.0, mode="fan_out", distribution="truncated_normal")
