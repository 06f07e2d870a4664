"""The network: uint8 (h, w, 1) to one logit.

Names and order of the layers are those of keras-cv 0.9, whichever builder made them, so weights files fit both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rsna_kit.config import ImageConfig, ModelConfig
from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.lazy import require

# Stages of EfficientNet-Lite0 (github.com/tensorflow/tpu, models/official/efficientnet/lite): no squeeze-excite, ReLU6.
_LITE0: dict[str, list[int]] = {
    "stackwise_kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
    "stackwise_num_repeats": [1, 2, 2, 3, 3, 4, 1],
    "stackwise_input_filters": [32, 16, 24, 40, 80, 112, 192],
    "stackwise_output_filters": [16, 24, 40, 80, 112, 192, 320],
    "stackwise_expansion_ratios": [1, 6, 6, 6, 6, 6, 6],
    "stackwise_strides": [1, 2, 2, 2, 1, 2, 1],
}
_DROP_CONNECT = 0.2
LAST = "top_activation"
_TAPS = {"linear": LAST, "conv": "block5c_add"}  # the layer each head looks at

# Keras' 0.99 needs some 500 steps to forget the ImageNet statistics; a fold may have 200. With 0.9 the statistics
# follow the last few hundred pictures, and the cosine schedule has made steps small by then. `batch_norm="frozen"`
# trains 1.8 times faster on a CPU, but learned less on CBIS-DDSM masses (128x128, AUC 0.65 against 0.69 after 5 epochs
# at 3e-4) and collapsed to one constant score at 1e-3.
BATCH_NORM_MOMENTUM = 0.9


def build_classifier(model: ModelConfig, image: ImageConfig) -> Any:
    """Build the classifier with random weights, in float32 unless Keras' global policy says otherwise.

    Args:
        model: backbone and dropout; `weights` is the affair of `rsna_kit.models.weights`.
        image: size of the input.

    Returns:
        keras.Model.

    Input shape:
        uint8 (batch, height, width, 1), values 0..255; scaled to (x - 127) / 128 inside.

    Output shape:
        float32 (batch, 1), a logit.
    """
    keras = require("keras", "train")
    layers = keras.layers
    picture = keras.Input((image.height, image.width, 1), dtype="uint8", name="picture")
    scaled = layers.Rescaling(1 / 128, offset=-127 / 128, name="scale")(picture)
    made = _head_layers(layers, model)
    logit = _head(model.head, build_backbone(model.backbone, scaled, _TAPS[model.head]), made.__getitem__)
    network = keras.Model(picture, logit, name=model.backbone)
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = BATCH_NORM_MOMENTUM
        if layer.name not in made:
            batch_norm = isinstance(layer, layers.BatchNormalization) and model.batch_norm == "frozen"
            layer.trainable = model.trunk == "train" and not batch_norm
    return network


def split_classifier(network: Any, model: ModelConfig) -> tuple[Any, Any]:
    """The same layers as two models: picture → feature map, and feature map → logit.

    Args:
        network: from `build_classifier(model, ...)`.
        model: the same section.

    Returns:
        Two keras.Model that share their weights with `network`.
    """
    keras = require("keras", "train")
    tap = network.get_layer(_TAPS[model.head]).output
    features = keras.Input(tap.shape[1:], name="features")
    head = keras.Model(features, _head(model.head, features, network.get_layer), name="head")
    return keras.Model(network.input, tap, name="trunk"), head


def _head_layers(layers: Any, model: ModelConfig) -> dict[str, Any]:
    """The head's layers by name.

    `conv`: a lesion covers a few cells of the map at 1/16, so convolutions look at neighbourhoods there and the
    maximum finds the worst of them; an average over the picture would drown it.
    """
    made = [layers.Dropout(model.dropout, name="dropout"), layers.Dense(1, dtype="float32", name="logit")]
    if model.head == "linear":
        return {layer.name: layer for layer in [layers.GlobalAveragePooling2D(name="pool"), *made]}
    made += [
        layers.BatchNormalization(name="head_norm"),
        layers.Conv2D(128, 3, padding="same", activation="relu", name="head_conv1"),
        layers.SpatialDropout2D(model.dropout, name="head_drop"),
        layers.Conv2D(64, 3, padding="same", activation="relu", name="head_conv2"),
        layers.GlobalMaxPooling2D(name="head_max"),
        layers.GlobalAveragePooling2D(name="head_mean"),
        layers.Concatenate(name="head_join"),
    ]
    return {layer.name: layer for layer in made}


def _head(kind: str, tensor: Any, layer: Callable[[str], Any]) -> Any:
    """Feature map to logit through the layers that `layer` finds by name."""
    if kind == "linear":
        tensor = layer("pool")(tensor)
    else:
        for name in ("head_norm", "head_conv1", "head_drop", "head_conv2"):
            tensor = layer(name)(tensor)
        tensor = layer("head_join")([layer("head_max")(tensor), layer("head_mean")(tensor)])
    return layer("logit")(layer("dropout")(tensor))


def build_backbone(name: str, scaled: Any, until: str = LAST) -> Any:
    """Feature map of a scaled picture.

    keras-cv's generic constructor builds it. keras-cv imports TensorFlow whatever the backend; on a machine with
    JAX alone the same layers are built here (`tests/test_models_classifier.py` holds them equal).

    Args:
        name: `efficientnet_lite0`.
        scaled: Keras tensor float (batch, h, w, channels).
        until: name of the layer whose output is wanted, the last one unless given.

    Returns:
        Keras tensor (batch, h / 32, w / 32, 1280), or (batch, h / 16, w / 16, 112) of `block5c_add`.

    Raises:
        UsageError: unknown name.
    """
    if name != "efficientnet_lite0":
        raise UsageError(f"model.backbone: got {name!r}, expected efficientnet_lite0")
    try:
        from keras_cv.models import EfficientNetLiteBackbone
    except ImportError:
        return lite0_from_layers(scaled, until)
    backbone = EfficientNetLiteBackbone(
        include_rescaling=False,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        drop_connect_rate=_DROP_CONNECT,
        input_tensor=scaled,
        **_LITE0,
    )
    # `backbone.output` belongs to a clone of the graph; the layer's first call belongs to ours.
    return backbone.get_layer(until).output


def lite0_from_layers(scaled: Any, until: str = LAST) -> Any:
    """EfficientNet-Lite0 from core Keras layers, named as keras-cv names them."""
    tensor = _convolution(scaled, 32, 3, "stem_", strides=2)
    tensor = _relu6(tensor, "stem_activation")
    total, done = sum(_LITE0["stackwise_num_repeats"]), 0
    for stage, (kernel, repeats, filters, expansion, strides) in enumerate(
        zip(
            _LITE0["stackwise_kernel_sizes"],
            _LITE0["stackwise_num_repeats"],
            _LITE0["stackwise_output_filters"],
            _LITE0["stackwise_expansion_ratios"],
            _LITE0["stackwise_strides"],
            strict=True,
        )
    ):
        for repeat in range(repeats):
            shape = (kernel, filters, expansion, strides if repeat == 0 else 1)
            name = f"block{stage + 1}{chr(ord('a') + repeat)}_"
            tensor = _block(tensor, shape, _DROP_CONNECT * done / total, name)
            done += 1
            if until == name + "add":
                return tensor
    return _relu6(_convolution(tensor, 1280, 1, "top_"), LAST)


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
