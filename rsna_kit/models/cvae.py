"""uint8 pictures → a convolutional variational autoencoder: anomaly logit, error map.

The data side gives it pictures without cancer only. What it has not seen it reconstructs badly, so the error tells
how unusual a picture is (An and Cho, Variational autoencoder based anomaly detection, 2015).

Size. The network works on a reduced picture: averaged over squares of whole pixels until its longer side is at most
`LONGEST` (a 1536x768 picture becomes 256x128), then padded with air to multiples of 32. A larger picture costs no
more memory than the reduced one, and the latent vector stays one for the whole picture. How it learns:
`rsna_kit.training.cvae`.
"""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace
from typing import Any

from rsna_kit.config import CvaeConfig, ImageConfig
from rsna_kit.runtime.lazy import require

LONGEST = 256  # pixels of the longer side of the reduced picture, at most
STAGES = 5  # halvings in the encoder, transposed convolutions in the decoder
WIDEST = 8  # times `cvae.filters`: channels are doubled up to here
BATCH_NORM_MOMENTUM = 0.9  # folds have a few hundred steps; Keras' 0.99 would score with statistics of the start
AIR = 0.5 / 255  # a reduced pixel up to here is air
_HOLES = 5  # dark spots inside the breast that are narrower than this, in reduced pixels, belong to it
_RIM = 2  # reduced pixels along the skin that are left out
_SMALLEST = 1e-6  # of a mean standardised error: a picture that is reconstructed perfectly still has a logarithm
_SMALLEST_VARIANCE = 255.0**-2  # of an error of one grey level
_LOG_VARIANCE = 10.0


def build_cvae(config: CvaeConfig, image: ImageConfig) -> Any:
    """Build the autoencoder with random weights; convolutions follow Keras' global precision, errors are float32.

    Args:
        config: latent size and filters.
        image: size of the input, any height and width.

    Returns:
        keras.Model: uint8 (B, h, w, 1) → float32 (B, 1), the calibrated anomaly score as a logit. Its variables, the
        decoder's too, are all that scoring and error maps need. It decodes the mean of the latent distribution; in
        training the latent vector is sampled, with a seeded generator.
    """
    keras = require("keras", "train")
    layers, ops, own = keras.layers, keras.ops, _own_layers()
    picture = keras.Input((image.height, image.width, 1), dtype="uint8", name="picture")
    reduced = _reduce(layers, picture)
    margin = [(0, -size % 2**STAGES) for size in reduced.shape[1:3]]
    padded = layers.ZeroPadding2D(margin, name="pad")(reduced)

    features = _encode(layers, padded, config.filters)
    flat = layers.Flatten(name="flatten")(features)
    mean = layers.Dense(config.latent, dtype="float32", name="latent_mean")(flat)
    # Zero at first: every latent starts with variance 1, and so with a KL term that is finite.
    spread = layers.Dense(config.latent, kernel_initializer="zeros", dtype="float32", name="latent_log_variance")(flat)
    latent = own.Sample(name="sample", dtype="float32")([mean, clipped(spread)])
    decoded = _decode(keras, latent, features.shape[1:], config.filters)
    crop = layers.Cropping2D(margin, dtype="float32", name="reconstruction")
    reconstruction = crop(decoded)

    standardise = own.Standardise(name="standardise", dtype="float32")
    squared, _ = standardise(ops.square(reduced - reconstruction))
    inside = own.Inside(name="inside", dtype="float32")(reduced)
    score = anomaly_score(squared, inside)
    identity = {"kernel_initializer": "ones", "bias_initializer": "zeros", "trainable": False, "dtype": "float32"}
    logit = layers.Dense(1, name="logit", **identity)(score)

    return keras.Model(picture, logit, name="cvae")


def error_model(network: Any) -> Any:
    """Where a score comes from, from the network alone, e.g. one that came out of a bundle.

    Args:
        network: from `build_cvae`.

    Returns:
        keras.Model on uint8 (B, h, w, 1) that shares the network's variables: the error map |reduced picture -
        reconstruction|, float32 (B, h, w, 1), a share of the grey range, 0 where the score does not look; enlarged from
        the reduced picture (bilinear).
    """
    keras = require("keras", "train")
    layers, (height, width) = keras.layers, network.input.shape[1:3]
    reduced, reconstruction, inside = (
        network.get_layer(name).output for name in ("reduced", "reconstruction", "inside")
    )
    error = keras.ops.abs(reduced - reconstruction) * inside
    if (factor := reduction(height, width)) > 1:
        error = layers.UpSampling2D(factor, interpolation="bilinear", dtype="float32")(error)
    rows, columns = error.shape[1:3]
    crop = layers.Cropping2D(((0, rows - height), (0, columns - width)), dtype="float32")
    return keras.Model(network.input, crop(error), name="cvae_errors")


def reduction(height: int, width: int) -> int:
    """How many pixels, along each side, are averaged to one.

    Example:
        >>> reduction(256, 256), reduction(257, 10), reduction(1536, 768), reduction(2048, 1024)
        (1, 2, 6, 8)
    """
    return math.ceil(max(height, width) / LONGEST)


def _reduce(layers: Any, picture: Any) -> Any:
    """Float32 in [0, 1] at the reduced size; a last block that is not whole is filled up with air."""
    height, width = picture.shape[1:3]
    factor = reduction(height, width)
    scaled = layers.Rescaling(1 / 255, dtype="float32", name="scale")(picture)
    margin = ((0, -height % factor), (0, -width % factor))
    filled = layers.ZeroPadding2D(margin, dtype="float32", name="fill")(scaled)
    return layers.AveragePooling2D(factor, dtype="float32", name="reduced")(filled)


def _encode(layers: Any, picture: Any, filters: int) -> Any:
    """Pre-activation residual blocks (He et al., Identity mappings in deep residual networks, 2016), each at half size.

    As in that paper's networks, a block that changes size and channels projects its activated input. The projection
    averages 2x2 pixels first and so drops none of them (He et al., Bag of tricks, 2019, ResNet-D). A 1x1 convolution
    with stride 2 on fewer than 16 channels also corrupts memory in TensorFlow 2.20 with oneDNN.
    """

    def activated(tensor: Any, name: str) -> Any:
        normal = layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, name=f"{name}_norm")(tensor)
        return layers.Activation("relu", name=f"{name}_relu")(normal)

    def convolved(tensor: Any, channels: int, size: int, stride: int, name: str) -> Any:
        made = layers.Conv2D(
            channels, size, stride, padding="same", use_bias=False, kernel_initializer="he_normal", name=name
        )
        return made(tensor)

    stem = layers.Conv2D(max(filters // 2, 1), 3, padding="same", kernel_initializer="he_normal", name="stem")
    tensor = stem(picture)
    for stage in range(STAGES):
        name, channels = f"encoder{stage + 1}", filters * min(2**stage, WIDEST)
        before = activated(tensor, f"{name}_in")
        halved = layers.AveragePooling2D(2, name=f"{name}_half")(before)
        shortcut = convolved(halved, channels, 1, 1, f"{name}_shortcut")
        residual = convolved(before, channels, 3, 2, f"{name}_conv1")
        residual = convolved(activated(residual, f"{name}_mid"), channels, 3, 1, f"{name}_conv2")
        tensor = layers.Add(name=f"{name}_add")([shortcut, residual])
    return activated(tensor, "encoder_out")


def _decode(keras: Any, latent: Any, shape: tuple[int, ...], filters: int) -> Any:
    """Five transposed convolutions, each to twice the size.

    A kernel of 4 with stride 2 covers every pixel equally often, so there is no checkerboard (Odena et al., 2016).
    """
    layers = keras.layers
    tensor = layers.Dense(math.prod(shape), activation="relu", name="decoder_dense")(latent)
    tensor = layers.Reshape(shape, name="decoder_map")(tensor)
    for stage in reversed(range(1, STAGES)):
        name, channels = f"decoder{stage + 1}", filters * min(2 ** (stage - 1), WIDEST)
        tensor = layers.Conv2DTranspose(
            channels, 4, 2, padding="same", use_bias=False, kernel_initializer="he_normal", name=name
        )(tensor)
        tensor = layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, name=f"{name}_norm")(tensor)
        tensor = layers.Activation("relu", name=f"{name}_relu")(tensor)
    dark = keras.initializers.Constant(-2.0)  # as mammograms mostly are: the first answer is sigmoid(-2) = 0.12
    last = layers.Conv2DTranspose(1, 4, 2, padding="same", bias_initializer=dark, name="decoder1")(tensor)
    return layers.Activation("sigmoid", dtype="float32", name="grey")(last)


@functools.cache
def _own_layers() -> SimpleNamespace:
    """Layers that Keras does not have; classes can only be made once Keras is there."""
    keras = require("keras", "train")
    ops = keras.ops
    base: Any = keras.layers.Layer

    class Sample(base):
        """Mean and log variance → a sample of that Gaussian in training, else the mean."""

        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.seeds = keras.random.SeedGenerator()  # follows keras.utils.set_random_seed

        def call(self, inputs: Any, training: bool = False) -> Any:
            mean, spread = inputs
            if not training:
                return mean
            return mean + ops.exp(0.5 * spread) * keras.random.normal(ops.shape(mean), dtype="float32", seed=self.seeds)

    class Standardise(base):
        """Squared errors → the same over their variance, and its logarithm.

        The variance is the batch's own in training and the running average of those afterwards.
        """

        def build(self, shape: Any) -> None:
            self.variance = self.add_weight(
                name="variance", shape=(), initializer="ones", trainable=False, autocast=False, aggregation="mean"
            )

        def call(self, squared: Any, training: bool = False) -> Any:
            variance = ops.convert_to_tensor(self.variance)
            if training:
                variance = ops.stop_gradient(ops.maximum(ops.mean(squared), _SMALLEST_VARIANCE))
                step = (1 - BATCH_NORM_MOMENTUM) * (variance - self.variance)
                self.variance.assign(self.variance + step)
            return squared / variance, ops.log(variance)

    class Inside(base):
        """Reduced pictures → 1 inside the breast, 0 elsewhere."""

        def call(self, reduced: Any) -> Any:
            return inside_breast(reduced)

    return SimpleNamespace(Sample=Sample, Standardise=Standardise, Inside=Inside)


def clipped(spread: Any) -> Any:
    """The latent's log variance within plus and minus 10: exp() stays finite."""
    return require("keras", "train").ops.clip(spread, -_LOG_VARIANCE, _LOG_VARIANCE)


def inside_breast(reduced: Any) -> Any:
    """Where the score looks: not the air, and not the skin line, which every autoencoder blurs.

    Holes are closed (a dilation, then an erosion), then a rim of two pixels is taken off. The picture's border is
    no rim: the breast goes on behind the chest wall.

    Args:
        reduced: float32 (B, h, w, 1) in [0, 1], air 0.

    Returns:
        float32 (B, h, w, 1) of 0 and 1. A picture without an inside (blank, or a breast of a few pixels) is 1
        everywhere: its score is that of the whole picture.
    """
    ops = require("keras", "train").ops
    tissue = ops.cast(reduced > AIR, "float32")
    grown = ops.max_pool(tissue, _HOLES, strides=1, padding="same")
    inside = -ops.max_pool(-grown, _HOLES + 2 * _RIM, strides=1, padding="same")
    some = ops.max(inside, axis=(1, 2, 3), keepdims=True) > 0
    return ops.where(some, inside, ops.ones_like(inside))


def anomaly_score(standardised: Any, inside: Any) -> Any:
    """How unlikely a picture is: the logarithm of its mean squared error, in units of the decoder's variance.

    The logarithm, because a few pictures have many times the error of the others: their scores would saturate, and they
    alone would set the deviation that the calibration divides by.

    Args:
        standardised: squared error of each pixel over the variance, float32 (B, h, w, 1); twice its nats.
        inside: weights of the pixels, (B, h, w, 1).

    Returns:
        float32 (B, 1): log(sum inside * standardised / sum inside), at least log(1e-6).
    """
    ops = require("keras", "train").ops
    mean = ops.sum(inside * standardised, axis=(1, 2)) / ops.sum(inside, axis=(1, 2))
    return ops.log(ops.maximum(mean, _SMALLEST))
