"""A scaled picture → the feature map of an EfficientNet B0 to B4 or an EfficientNetV2, built by keras.applications.

The stock graph is copied onto the scaled picture with three changes, all by `keras.models.clone_model`. Its own
`Rescaling` and `Normalization` are left out: ours come before it, and an un-adapted `Normalization` would carry three
weights and do nothing. The rate of stochastic depth follows the configuration, which the stock functions do not take.
The copy ends at the layer that is wanted.
"""

from __future__ import annotations

from typing import Any

from rsna_kit.runtime.lazy import require


def build_efficientnet(stock: str, scaled: Any, tap: int, drop_path: float) -> Any:
    """Feature map of a scaled picture.

    EfficientNet: Tan and Le 2019. EfficientNetV2: Tan and Le 2021.

    Args:
        stock: name of a function in keras.applications, e.g. `EfficientNetV2B0`.
        scaled: Keras tensor float (batch, h, w, channels).
        tap: 32: after the last activation; 16: the last sum of the fifth stage.
        drop_path: rate of stochastic depth; block i of n drops `drop_path` * i / n, as published. (The stock
            EfficientNetV2 counts the blocks of B0 whatever its depth, so its B3 drops more than the rate it is given.)

    Returns:
        Keras tensor float (batch, ceil(h / tap), ceil(w / tap), channels).
    """
    keras = require("keras", "train")
    # The stock network without its top, on a picture of this size: its paddings depend on it.
    inputs = keras.Input(scaled.shape[1:])
    options = {"include_preprocessing": False} if "V2" in stock else {}
    whole = getattr(keras.applications, stock)(include_top=False, weights=None, input_tensor=inputs, **options)
    names = [layer.name for layer in whole.layers]
    last = "top_activation" if tap == 32 else _last_sum(names, "block5")
    blocks = list(dict.fromkeys(_block_of(name) for name in names if name.startswith("block")))

    def copied(layer: Any) -> Any:
        config = layer.get_config()
        if isinstance(layer, keras.layers.Dropout):
            config["rate"] = drop_path * blocks.index(_block_of(layer.name)) / len(blocks)
        return type(layer).from_config(config)

    def called(layer: Any, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization):
            return tensor
        return layer(tensor, *args, **kwargs)

    wanted = keras.Model(inputs, whole.get_layer(last).output)
    copy = keras.models.clone_model(wanted, input_tensors=scaled, clone_function=copied, call_function=called)
    # `copy.output` belongs to another clone of the graph; the layer's first call belongs to ours.
    return copy.get_layer(last).output


def _block_of(name: str) -> str:
    """`block5` and a letter of `block5c_add`."""
    return name.partition("_")[0]


def _last_sum(names: list[str], stage: str) -> str:
    return [name for name in names if name.startswith(stage) and name.endswith("_add")][-1]
