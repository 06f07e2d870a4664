"""Members with weights → one scorer: pictures to probabilities, and to attention where a member asks for it.

Folds and models are averaged as probabilities, so that each may be as sure as it is. A picture and its mirror image
(upside down: the chest wall stays left) are averaged before that, in the network's raw outputs: the mean of two logits
is a logit again, and the mean of two attentions an attention, so one network with TTA is one network still.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from rsna_kit.models.bundle import load_model
from rsna_kit.models.members import Member
from rsna_kit.runtime.errors import BundleError, UsageError, one_line
from rsna_kit.runtime.hardware import cpu_count
from rsna_kit.runtime.lazy import require

# Largest difference of a probability from Keras' that is still believed of OpenVINO. Adding float32 numbers in another
# order moves probabilities by 1e-7 to 1e-5, bfloat16 moved them by 5e-3, a wrong operation by more.
TOLERANCE = 1e-3
Run = Callable[[np.ndarray], np.ndarray]  # uint8 (B, h, w, 1), B fixed → float32 (B, C)


class Part(NamedTuple):
    """Columns of image scores that make one breast score, and its weight among the parts.

    Image-level members commute with the mean over a breast's images, so all of them together are one part; each
    breast-level member has an attention of its own, so it is a part of its own.
    """

    weight: float
    score: str
    attention: str | None


class _Scorer(NamedTuple):
    """A member at work: pictures → its raw outputs, and the number of its part."""

    member: Member
    run: Run
    part: int


class Ensemble:
    """Loaded members that score batches of one fixed size.

    Args:
        members: bundles that share one image section, with weights.
        batch_size: rows of every batch the networks see; short batches are padded, so that each is traced once.
        tta: "flip" averages each picture with itself upside down; "none".
        runtime: who computes, "keras" or "openvino". On the first batch Keras computes, too: a network whose scores
            differ by more than `TOLERANCE`, or which cannot be converted, stays with Keras.
        say: told what was proven, and what was left to Keras.

    Attributes:
        parts: what the columns are and how they are weighted.
        columns: names of the columns that `score` gives: `score`, `attention` of the first part; those of the next end
            in `_1` and so on.

    Raises:
        BundleError: a bundle that cannot be loaded.
        MissingDependencyError: OpenVINO is not installed; names the extra and the wheels dataset.
        UsageError: OpenVINO with another Keras backend than TensorFlow, which exports its networks.
    """

    def __init__(
        self,
        members: Sequence[Member],
        batch_size: int,
        tta: str = "none",
        runtime: str = "keras",
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        if runtime == "openvino":
            require("openvino", "runtimes")
            if (backend := require("keras", "train").backend.backend()) != "tensorflow":
                raise UsageError(
                    f"infer.runtime: got 'openvino' with Keras on {backend}; its networks are exported by TensorFlow "
                    "alone. Use --set infer.runtime=keras, or KERAS_BACKEND=tensorflow."
                )
        self._batch_size, self._flip, self._runtime, self._say = batch_size, tta == "flip", runtime, say
        self._scorers: list[_Scorer] = []
        self.parts: list[Part] = []
        for member in members:
            network = load_model(member.bundle)
            attentive = network.output_shape[-1] == 2
            shared = (n for n, part in enumerate(self.parts) if not attentive and part.attention is None)
            number = next(shared, len(self.parts))
            if number == len(self.parts):
                suffix = f"_{number}" if number else ""
                self.parts.append(Part(0.0, "score" + suffix, "attention" + suffix if attentive else None))
            part = self.parts[number]
            self.parts[number] = part._replace(weight=part.weight + member.weight)
            self._scorers.append(_Scorer(member, self._runner(member, network), number))
        self.columns = [name for part in self.parts for name in (part.score, part.attention) if name is not None]

    def score(self, images: np.ndarray) -> np.ndarray:
        """Weighted mean of the members' probabilities in each part.

        Args:
            images: uint8 (N, h, w, 1), N at most `batch_size`.

        Returns:
            float64 (N, C), one column for each of `columns`: scores in [0, 1], attentions as logits. NaN in the columns
            of a part whose members have all been dropped.

        Raises:
            BundleError: a network's output is not finite; its bundle is named.
        """
        padded = np.zeros((self._batch_size, *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        views = [padded, np.ascontiguousarray(padded[:, ::-1])] if self._flip else [padded]
        means: list[np.ndarray] = []
        for number, part in enumerate(self.parts):
            scorers = [scorer for scorer in self._scorers if scorer.part == number]
            total = sum(scorer.member.weight for scorer in scorers)
            shares = [scorer.member.weight / total * self._columns(scorer, views, len(images)) for scorer in scorers]
            empty = np.full((len(images), 1 if part.attention is None else 2), np.nan)
            means.append(np.sum(shares, axis=0) if shares else empty)
        return np.concatenate(means, axis=1)

    def _columns(self, scorer: _Scorer, views: Sequence[np.ndarray], rows: int) -> np.ndarray:
        """A member's score, and its attention if it has one: float64 (N, 1) or (N, 2)."""
        outputs = np.mean([scorer.run(view)[:rows].astype(np.float64) for view in views], axis=0)
        if not np.isfinite(outputs).all():
            raise BundleError(f"{scorer.member.bundle.path}: its network's output is not finite. Train again.")
        outputs[:, 0] = expit(outputs[:, 0])
        return outputs

    def lighten(self) -> str | None:
        """Give up the work that is missed least: first TTA, then the member of least weight (of equals, the last).

        Returns:
            What was given up, in words; None when there is only one member left and nothing to give up.
        """
        if self._flip:
            self._flip = False
            return "TTA"
        if len(self._scorers) == 1:
            return None
        least = min(scorer.member.weight for scorer in self._scorers)
        last = max(index for index, scorer in enumerate(self._scorers) if scorer.member.weight == least)
        return str(self._scorers.pop(last).member.bundle.path)

    def _runner(self, member: Member, network: Any) -> Run:
        """A member's network by the runtime that was asked for, or by Keras where that cannot take it."""

        def keras(pictures: np.ndarray) -> np.ndarray:
            return np.asarray(network.predict_on_batch(pictures))

        if self._runtime == "keras":
            return keras
        try:
            fast = compile_openvino(network, self._batch_size)
        except Exception as error:  # whatever a converter raises: Keras scores all the same
            why = f"{type(error).__name__}: {one_line(error)}"
            self._say(f"{member.bundle.path}: openvino cannot take it, Keras scores ({why})")
            return keras
        return believed(fast, keras, lambda said: self._say(f"{member.bundle.path}: openvino {said}"))


def believed(fast: Run, sure: Run, say: Callable[[str], None]) -> Run:
    """`fast` from the first batch on which it has scored as `sure` does, else `sure`; says which."""
    chosen: list[Run] = []

    def run(pictures: np.ndarray) -> np.ndarray:
        if not chosen:
            difference = score_difference(sure(pictures), fast(pictures))
            chosen.append(fast if difference <= TOLERANCE else sure)
            if chosen[0] is fast:
                say(f"scores as Keras does: at most {difference:.1e} apart on the first batch")
            else:
                say(f"differs from Keras by {difference:.1e}, more than {TOLERANCE:g}: Keras scores")
        return chosen[0](pictures)

    return run


def compile_openvino(network: Any, batch_size: int) -> Run:
    """Convert a Keras network for OpenVINO on the CPU, by way of a SavedModel in a temporary folder.

    It computes in float32: left alone it takes bfloat16 where the CPU has it, which moved scores by 5e-3. OpenVINO's
    own `convert_model` is not used: it reports its use over the network.

    Args:
        network: keras.Model, uint8 (B, h, w, 1) → float32 (B, C); may be dropped afterwards.
        batch_size: rows of every batch that will come; the conversion is for this number alone.

    Raises:
        Exception: whatever the converter raises for an operation that it does not know.
    """
    keras = require("keras", "train")
    core = require("openvino", "runtimes").Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": cpu_count()}
    with tempfile.TemporaryDirectory(prefix="rsna-kit-") as folder:
        signature = [keras.InputSpec(shape=(batch_size, *network.input_shape[1:]), dtype="uint8")]
        network.export(folder, format="tf_saved_model", verbose=False, input_signature=signature)
        compiled = core.compile_model(core.read_model(folder), "CPU", settings)
    return lambda pictures: np.array(compiled(pictures)[0])


def score_difference(wanted: np.ndarray, got: np.ndarray) -> float:
    """Largest difference between two answers of one network, as a difference of probabilities; inf where one is NaN.

    Args:
        wanted: float (N, 1), logits, or (N, 2), logits and attentions. A share of a softmax moves by at most a quarter
            of what an attention moves.
        got: of the same shape.

    Example:
        >>> score_difference(np.array([[0.0, 1.0]]), np.array([[0.0, 1.2]]))
        0.05
    """
    wanted, got = wanted.astype(np.float64), got.astype(np.float64)
    differences = [np.abs(expit(wanted[:, 0]) - expit(got[:, 0])), *(np.abs(wanted - got).T[1:] / 4)]
    largest = float(np.max(differences))
    return round(largest, 12) if np.isfinite(largest) else float("inf")
