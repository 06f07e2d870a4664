"""A scaled picture → EfficientNet-Lite's feature map by keras-cv."""

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
DROP_PATH = 0.2  # stochastic depth (Huang et al. 2016): block i of n drops DROP_PATH * i / n
_STAGES: dict[str, list[int]] = {
    "stackwise_kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
    "stackwise_num_repeats": [1, 2, 2, 3, 3, 4, 1],
    "stackwise_input_filters": [32, 16, 24, 40, 80, 112, 192],
    "stackwise_output_filters": [16, 24, 40, 80, 112, 192, 320],
    "stackwise_expansion_ratios": [1, 6, 6, 6, 6, 6, 6],
    "stackwise_strides": [1, 2, 2, 2, 1, 2, 1],
}


def build_lite(name: str, scaled: Any, tap: int) -> Any:
    """Feature map of a scaled picture.

    Args:
        name: key of `COEFFICIENTS`.
        scaled: Keras tensor float (batch, h, w, channels).
        tap: 32: after the last activation; 16: the last sum of the fifth stage.

    Returns:
        Keras tensor float (batch, ceil(h / 32), ceil(w / 32), 1280), or (batch, ceil(h / 16), ceil(w / 16), 112;
        lite2: 120).
    """
    width, depth = COEFFICIENTS[name]
    made = require("keras_cv.models", "train").EfficientNetLiteBackbone(
        include_rescaling=False,
        width_coefficient=width,
        depth_coefficient=depth,
        # keras-cv divides by the number of blocks of Lite0
        drop_connect_rate=DROP_PATH * sum(_STAGES["stackwise_num_repeats"]) / sum(repeats(name)),
        input_tensor=scaled,
        **_STAGES,
    )
    last = "top_activation" if tap == 32 else f"{block_name(4, repeats(name)[4] - 1)}add"
    # `made.output` belongs to a clone of the graph; the layer's first call belongs to ours.
    return made.get_layer(last).output


def repeats(name: str) -> list[int]:
    """Blocks of each of the seven stages."""
    first, *middle, final = _STAGES["stackwise_num_repeats"]
    return [first, *(math.ceil(count * COEFFICIENTS[name][1]) for count in middle), final]


def block_name(stage: int, repeat: int) -> str:
    """What the names of a block's layers begin with."""
    return f"block{stage + 1}{chr(ord('a') + repeat)}_"
