"""Films with outlined masses → networks of two kinds, whose mean ranks better than either.

* **patches**, as Shen et al., Deep learning to improve breast cancer detection on screening mammography, Scientific
  Reports 2019. A cell of a network's map sees a patch of the picture. Patches teach the upper stages of the trunk and
  the head, each cell by the outline that it lies in; then whole pictures teach the head.
* **pictures**: the trunk keeps its ImageNet weights, and whole pictures alone teach the head.

The lower stages keep their ImageNet weights in both, so that their maps are computed once, for a few variants of each
picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
from scipy.special import expit

from rsna_kit.competition.folds import digest_patients
from rsna_kit.config import preset, with_overrides
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.lazy import require
from rsna_kit.training.losses import cross_entropy

CONFIG = with_overrides(
    preset("mammography"),
    [
        "model.weights=imagenet",
        "model.trunk=train",
        "train.folds=3",
        "train.learning_rate=1e-3",
        "train.precision=float32",
    ],
)
KINDS = {"patches": 6, "pictures": 24}  # of networks, and the epochs of whole pictures of each
CUT = "block3b_add"  # the last layer that is not trained
VARIANTS = 6  # of each picture: as it is, upside down, and others
PATCH = 24  # cells of the lower map (8 pixels each) along a patch
ANYWHERE = 0.5  # patches from anywhere on a breast, as a share of those on a mass
PATCH_EPOCHS = 10
INSIDE = 10.0  # how much more a cell inside an outline counts
CELLS = 0.3  # how much the cells of whole pictures count beside their labels
STRIDE = 16  # pixels of the network's cells


class Films(NamedTuple):
    """`table`: N rows; `pictures` uint8 (N, h, w); `outlines` uint8 (N, h, w), 255 inside a mass."""

    table: pd.DataFrame
    pictures: np.ndarray
    outlines: np.ndarray

    def digest(self) -> str:
        """Hex digits that change whenever a picture, an outline or a label does."""
        labels = self.table["cancer"].to_numpy(np.uint8)
        parts = (self.pictures, self.outlines, labels)
        return hashlib.sha256(b"".join(hashlib.sha256(part.tobytes()).digest() for part in parts)).hexdigest()[:12]


def variant(picture: np.ndarray, outline: np.ndarray, number: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """A picture and its outline: 0 as they are, 1 upside down, from 2 on moved, turned, scaled and toned by chance."""
    if number < 2:
        return picture[:: 1 - 2 * number], outline[:: 1 - 2 * number]
    height, width = picture.shape
    turn = cv2.getRotationMatrix2D((0.3 * width, height / 2), rng.uniform(-15, 15), rng.uniform(0.8, 1.2))
    move: np.ndarray = np.array(turn, np.float64)
    move[:, 2] += rng.uniform(-0.04, 0.04) * width, rng.uniform(-0.05, 0.05) * height
    step = 1 - 2 * int(rng.integers(2))
    moved = [cv2.warpAffine(np.ascontiguousarray(one[::step]), move, (width, height)) for one in (picture, outline)]
    gamma, shift, contrast = rng.uniform(0.8, 1.25), rng.uniform(-0.08, 0.08), rng.uniform(0.85, 1.15)
    tones = np.clip(((np.arange(256) / 255) ** gamma - 0.5) * contrast + 0.5 + shift, 0, 1)
    tones[0] = 0  # air
    return np.rint(255 * tones).astype(np.uint8)[moved[0]], moved[1]


@dataclass
class _Networks:
    """Parts of one network, which share its weights; `lower` and `upper` are its trunk, `head` goes on to the map."""

    start: dict[str, Any]  # where its first weights are from
    whole: Any
    lower: Any
    upper: Any  # maps of any size
    patches: Any  # lower maps of any size → logits of cells (B, h, w, 2): a malignant mass, a mass
    pictures: Any  # upper maps → logit (B, 1), and logits of cells


def _build() -> _Networks:
    """The network that a bundle holds, with ImageNet weights, and its parts."""
    from rsna_kit.models.network import build_classifier
    from rsna_kit.models.starts import load_start

    keras = require("keras", "train")
    whole = build_classifier(CONFIG.model, CONFIG.image)
    start = load_start(whole, CONFIG.model)
    cut, features, ends = (whole.get_layer(name).output for name in (CUT, "features", "map"))

    def sizeless(start: Any, end: Any) -> Any:
        given = keras.Input((None, None, start.shape[-1]))
        return keras.models.clone_model(keras.Model(start, end), given, clone_function=lambda layer: layer)

    upper, head = sizeless(cut, features), sizeless(features, ends)
    malignant, mass = whole.get_layer("logit"), keras.layers.Dense(1, name="mass")

    def cells(maps: Any) -> Any:  # a cell is its own average and its own maximum
        return keras.layers.Concatenate()([malignant(keras.layers.Concatenate()([maps, maps])), mass(maps)])

    patch = keras.Input((None, None, cut.shape[-1]))
    return _Networks(
        start,
        whole,
        keras.Model(whole.input, cut),
        upper,
        keras.Model(patch, cells(head(upper(patch)))),
        keras.Model(features, [whole.output, cells(ends)]),
    )


class Lessons:
    """What networks are taught with.

    Lower maps of all variants, float16 (V, N, h, w, c), and ImageNet's upper maps of them; of the cells of these,
    (V, N, h / 2, w / 2), the share inside an outline, float32, and whether there is any breast, bool.
    """

    def __init__(self, films: Films, events: Events) -> None:
        from rsna_kit.training.steps import read_values

        self._films, self._events, self._digest = films, events, films.digest()
        require("keras", "train").utils.set_random_seed(0)
        self._networks = _build()
        parts = (self._networks.whole, self._networks.patches, self._networks.pictures)
        held = {id(variable): variable for part in parts for variable in part.variables}
        self._variables = list(held.values())
        self._begin = read_values(self._variables)
        self._labels = films.table["cancer"].to_numpy(np.float32)
        self._lower, self._inside, self._breast = self._variants()
        self._upper = self._upper_maps(np.arange(len(films.table)))  # of the trunk with ImageNet weights

    def _variants(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        count, rng, batch = len(self._films.table), np.random.default_rng(1), CONFIG.infer.batch_size
        lower = np.empty((VARIANTS, count, *self._networks.lower.output.shape[1:]), np.float16)
        inside = np.empty((VARIANTS, count, CONFIG.image.height // STRIDE, CONFIG.image.width // STRIDE), np.float32)
        breast = np.empty(inside.shape, bool)
        with self._events.progress(VARIANTS * count, "lower maps") as progress:
            for number in range(VARIANTS):
                for start in range(0, count, batch):
                    rows = slice(start, min(start + batch, count))
                    films = zip(self._films.pictures[rows], self._films.outlines[rows], strict=True)
                    pairs = [variant(*film, number, rng) for film in films]
                    pictures, outlines = (np.stack(part) for part in zip(*pairs, strict=True))
                    lower[number, rows] = _predict(self._networks.lower, pictures[..., None])
                    inside[number, rows] = self._squares(outlines).mean((2, 4), dtype=np.float32) / 255
                    breast[number, rows] = self._squares(pictures).max((2, 4)) > 0
                    progress.advance(len(pairs))
        return lower, inside, breast

    @staticmethod
    def _squares(pictures: np.ndarray) -> np.ndarray:
        """Pictures (B, h, w) as (B, rows of cells, STRIDE, columns of cells, STRIDE)."""
        return pictures.reshape(len(pictures), pictures.shape[1] // STRIDE, STRIDE, -1, STRIDE)

    def give(self, kind: str, rows: np.ndarray, held: np.ndarray, seed: int, fold: int, bundle: Path) -> np.ndarray:
        """Teach a network on `rows` and write its bundle, where it is not there; its scores of the pictures `held`."""
        from rsna_kit.models.bundle import METADATA, load_model, open_bundle
        from rsna_kit.training.export import write_bundle
        from rsna_kit.training.steps import assign_values

        networks, trunk = self._networks, "train" if kind == "patches" else "frozen"
        told = [f"train.seed={seed}", f"train.epochs={KINDS[kind]}", f"model.trunk={trunk}"]
        config, patients = with_overrides(CONFIG, told), digest_patients(self._films.table["patient_id"].iloc[rows])
        made_of = None
        if (bundle / METADATA).is_file():
            there = open_bundle(bundle)
            made_of = (there.metadata["data_fingerprint"], there.metadata["trained_on"], there.config)
        if made_of != (self._digest, patients, config):
            rng = np.random.default_rng([seed, fold])
            assign_values(self._variables, self._begin)
            if kind == "patches":
                self._teach_patches(rows, rng)
            upper = self._upper if kind == "pictures" else self._upper_maps(rows)
            self._teach_pictures(rows, upper, KINDS[kind], rng)
            write_bundle(bundle, networks.whole, config, fold, None, {}, self._digest, networks.start, patients)
        network, pictures = load_model(open_bundle(bundle)), self._films.pictures[held]
        both = [_predict(network, view[..., None])[:, 0] for view in (pictures, pictures[:, ::-1])]
        return np.asarray(expit(np.mean(both, axis=0)))  # as infer.tta=flip has it

    def _teach_patches(self, rows: np.ndarray, rng: np.random.Generator) -> None:
        """A patch on the mass of every film once an epoch, and half as many from anywhere."""
        jobs = np.concatenate([rows, np.full(round(ANYWHERE * len(rows)), -1)])

        def load(chosen: np.ndarray) -> tuple[np.ndarray, Any]:
            made = [self._patch(row if row >= 0 else rng.choice(rows), row >= 0, rng) for row in chosen]
            return np.stack([one for one, _ in made]).astype(np.float32), np.stack([cells for _, cells in made])

        self._teach("patches", self._networks.patches, [_cell_loss], jobs, PATCH_EPOCHS, load, rng)

    def _patch(self, row: int, on_mass: bool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A patch of the lower map, its middle in a mass, or near it, or anywhere on the breast; and its cells."""
        number = int(rng.integers(VARIANTS))
        inside, lower = self._inside[number, row], self._lower[number, row]
        places = np.argwhere(inside > 0.1 if on_mass and inside.max() > 0.1 else self._breast[number, row])
        middle = 2 * places[rng.integers(len(places))] + 1
        if on_mass:
            middle = middle + rng.integers(-PATCH // 4, PATCH // 4 + 1, 2)
        top, left = (np.clip(middle - PATCH // 2, 0, np.array(lower.shape[:2]) - PATCH) // 2 * 2).tolist()
        part = inside[top // 2 : (top + PATCH) // 2, left // 2 : (left + PATCH) // 2]
        return lower[top : top + PATCH, left : left + PATCH], self._cells(part, self._labels[row])

    def _upper_maps(self, rows: np.ndarray) -> np.ndarray:
        """The trunk's maps of `rows`, float16 (V, N, h, w, c); other rows hold anything."""
        maps = np.empty((VARIANTS, len(self._labels), *self._networks.pictures.input.shape[1:]), np.float16)
        with self._events.progress(VARIANTS, "upper maps", "variants") as progress:
            for number in range(VARIANTS):
                maps[number, rows] = _predict(self._networks.upper, self._lower[number, rows])
                progress.advance()
        return maps

    def _teach_pictures(self, rows: np.ndarray, upper: np.ndarray, epochs: int, rng: np.random.Generator) -> None:
        """Whole pictures teach the head, by their label and by their cells."""

        def load(chosen: np.ndarray) -> tuple[np.ndarray, Any]:
            numbers, label = rng.integers(0, VARIANTS, len(chosen)), self._labels[chosen]
            cells = [self._cells(part, one) for part, one in zip(self._inside[numbers, chosen], label, strict=True)]
            smooth = label * (1 - CONFIG.train.label_smoothing) + CONFIG.train.label_smoothing / 2
            return upper[numbers, chosen].astype(np.float32), [smooth[:, None], np.stack(cells)]

        losses = [cross_entropy, _cell_loss]
        self._teach("pictures", self._networks.pictures, losses, rows, epochs, load, rng)

    def _teach(
        self, what: str, model: Any, losses: Any, jobs: np.ndarray, epochs: int, load: Any, rng: np.random.Generator
    ) -> None:
        """Train a model on batches of `jobs`, which `load` makes pictures and targets of."""
        from rsna_kit.training.steps import build_optimizer, build_schedule

        size = CONFIG.train.batch_size
        steps = len(jobs) // size
        optimizer = build_optimizer(model, CONFIG.train)
        weights = [1, CELLS][: len(losses)]
        model.compile(optimizer=optimizer, loss=losses, loss_weights=weights, jit_compile=False)
        rate = build_schedule(CONFIG.train.learning_rate, epochs * steps)

        def batches() -> Iterator[tuple[np.ndarray, Any]]:
            for _ in range(epochs):
                order = rng.permutation(jobs)
                yield from (load(order[start : start + size]) for start in range(0, steps * size, size))

        loaded, end = batches(), (np.empty(0), None)
        with ThreadPoolExecutor(1) as ahead, self._events.progress(epochs * steps, what, "batches") as progress:
            coming = ahead.submit(next, loaded, end)
            for step in range(epochs * steps):
                given, wanted = coming.result()
                coming = ahead.submit(next, loaded, end)
                model.optimizer.learning_rate = rate(step)
                model.reset_metrics()
                progress.advance(1, f"loss {model.train_on_batch(given, wanted, return_dict=True)['loss']:.3f}")

    @staticmethod
    def _cells(inside: np.ndarray, label: float) -> np.ndarray:
        """Targets of cells, float32 (h, w, 3): a malignant mass, a mass, and how much the cell counts."""
        mass = np.minimum(2 * inside, 1)
        return np.stack([mass * label, mass, 1 + INSIDE * inside], axis=-1)


def _cell_loss(target: Any, logits: Any) -> Any:
    """The weighted mean over cells of both cross-entropies."""
    ops = require("keras", "train").ops
    return ops.sum(ops.mean(cross_entropy(target[..., :2], logits) * target[..., 2:], axis=(1, 2)), axis=-1)


def _predict(model: Any, given: np.ndarray) -> np.ndarray:
    """Outputs of many pictures, uint8, or maps, float16."""
    given = given if given.dtype == np.uint8 else given.astype(np.float32)
    return np.asarray(model.predict(given, CONFIG.infer.batch_size, verbose=0))
