"""The hidden run of 32,000 files in simulated time: what ends when, what is shed, whether the file is valid.

Real: `recipes.infer` with its clock, the pace and what it gives up, the queue of images with its threads and its
patience, the survey of heads, the ensemble that sheds TTA and members, the ledger, the files on disk, and who starts a
run again that died. Replaced: time itself, and the work that takes it: reading, decoding, rendering, a forward pass.
What they take is in `costs`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd

import rsna_kit.dicom.dali
import rsna_kit.dicom.proof
import rsna_kit.dicom.survey
import rsna_kit.imaging.stream
import rsna_kit.models.ensemble
import rsna_kit.recipes.infer
import rsna_kit.runtime.clock
import rsna_kit.runtime.events
import rsna_kit.runtime.threads
from rsna_kit.config import Config, DecodeConfig, InferConfig
from rsna_kit.dicom.proof import Proof, Verdict
from rsna_kit.dicom.survey import Kind, Surveyed
from rsna_kit.dicom.trust import Group
from rsna_kit.imaging.breast import Box
from rsna_kit.imaging.render import Rendered
from rsna_kit.models.bundle import Bundle
from rsna_kit.models.members import Member, Members
from rsna_kit.recipes.attempts import MOST_ATTEMPTS, run_attempts
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import DecodeError
from rsna_kit.runtime.events import Events, Progress
from rsna_lab.kaggle.clock.costs import FILES, KAGGLE_S, KINDS, LIMIT_S, FileKind, Scenario
from rsna_lab.kaggle.clock.virtual_time import Resource, World
from rsna_lab.kaggle.rehearse.verdict import of_submission


@dataclass(frozen=True)
class Result:
    """How a scenario ended. Times in seconds from the kernel's start; `progress` is (time, images) pairs."""

    scenario: Scenario
    end_s: float
    images: int
    scored: int
    failed: int
    shed: list[tuple[float, str]]
    error: str
    file: str  # "valid", or what is wrong with it
    prior: float  # share of breasts that were left at the prior
    progress: list[tuple[float, int]]

    @property
    def in_time(self) -> bool:
        """Whether Kaggle would have let it end."""
        return self.end_s < KAGGLE_S


def simulate(scenario: Scenario, out: Path, files: int = FILES, limit_s: float = LIMIT_S, seed: int = 0) -> Result:
    """Run one scenario in simulated time.

    Args:
        scenario: what happens.
        out: empty folder for the competition's tables, the run's files and its log.
        files: images of the hidden test.
        limit_s: the time that the kernel gives `infer`.
        seed: of the order in which kinds of files come.
    """
    test = _tables(out / "competition", files)
    with open(out / "log.txt", "w", encoding="utf-8") as log, World() as world:
        events = _Listener(world, files, out / "work" / "events.jsonl", log)
        machine = _Machine(world, scenario, _kinds(test, seed))
        with _in_the_place_of_work(machine):
            world.sleep(scenario.costs.start_s)
            settings = InferConfig(tta="flip" if scenario.tta else "none")
            decode = DecodeConfig(workers=scenario.costs.cores, gpus="all" if scenario.decoding_gpus else "none")
            clock, work = Clock(limit_s), out / "work"

            def attempt(number: int) -> tuple[int, str]:
                if number > 1:
                    world.sleep(scenario.costs.restart_s)
                machine.process = number
                try:
                    left = Clock(clock.remaining_s())
                    rsna_kit.recipes.infer.infer(out / "competition", work, [out], settings, events, left, decode,
                                                 attempt=number)  # fmt: skip
                except Exception as raised:
                    return 1, f"{type(raised).__name__}: {raised}"
                return 0, ""

            progress = work / "image_scores.csv"
            ended = run_attempts(attempt, progress, clock, MOST_ATTEMPTS, lambda line: events.say(line, "attempt"))
        end_s = world.now
    return _result(scenario, out, test, events, ended.reason, end_s)


def _result(scenario: Scenario, out: Path, test: pd.DataFrame, events: _Listener, error: str, end_s: float) -> Result:
    """What is on disk, which is all that Kaggle sees."""
    verdict = of_submission(out / "work/submission.csv", out / "competition/sample_submission.csv")
    scores = pd.read_csv(out / "work/image_scores.csv", dtype={"image_id": str})
    failures = pd.read_csv(out / "work/failures.csv", dtype=str)
    breasts = test["prediction_id"].nunique()
    scored = test.loc[test["image_id"].isin(scores["image_id"]), "prediction_id"].nunique()
    return Result(
        scenario, end_s, len(test), len(scores), len(failures), events.shed, error,
        "valid" if verdict.good else verdict.explanation, 1 - scored / breasts, events.progress_made,
    )  # fmt: skip


def _tables(folder: Path, files: int) -> pd.DataFrame:
    """test.csv and sample_submission.csv of women with two images of each breast."""
    folder.mkdir(parents=True)
    rows = [
        {"site_id": 1, "patient_id": str(10_000 + number // 4), "image_id": str(1_000_000 + number),
         "laterality": "LR"[number // 2 % 2], "view": ("CC", "MLO")[number % 2], "age": 60, "implant": 0,
         "machine_id": 49, "prediction_id": f"{10_000 + number // 4}_{'LR'[number // 2 % 2]}"}
        for number in range(files)
    ]  # fmt: skip
    test = pd.DataFrame(rows)
    test.to_csv(folder / "test.csv", index=False)
    test[["prediction_id"]].drop_duplicates().assign(cancer=0.02).to_csv(folder / "sample_submission.csv", index=False)
    return test


def _kinds(test: pd.DataFrame, seed: int) -> dict[str, FileKind]:
    """Image → what its file is; a woman's are all of one kind."""
    women = test["patient_id"].unique()
    drawn = random.Random(seed).choices(KINDS, [kind.share for kind in KINDS], k=len(women))
    of_woman = dict(zip(women, drawn, strict=True))
    return dict(zip(test["image_id"], test["patient_id"].map(of_woman), strict=True))


class _Listener(Events):
    """Events that are remembered with the simulation's time."""

    def __init__(self, world: World, images: int, path: Path, stream: Any) -> None:
        super().__init__(path, stream)
        self._start = 0.0
        self._world, self._images = world, images
        self.shed: list[tuple[float, str]] = []
        self.progress_made: list[tuple[float, int]] = []

    def say(self, message: str, kind: str = "note", **fields: Any) -> None:
        """A line, at its time."""
        if kind == "given_up":
            self.shed.append((self._world.now, message.rpartition(": ")[2]))
        if kind == "attempt":
            self.shed.append((self._world.now, "a new process"))
        super().say(f"[{self._world.now:8.0f} s] {message}", kind, **fields)

    def progress(self, total: int, label: str, unit: str = "images") -> Progress:
        """A display whose steps are remembered."""
        display = super().progress(total, label, unit)
        if label == "infer":
            step, before = display.advance, self._images - total  # those that an earlier process has done

            def advance(steps: int = 1, note: str = "", kind: str = "") -> None:
                step(steps, note, kind)
                if self.progress_made and self.progress_made[-1][0] == self._world.now:
                    self.progress_made.pop()
                self.progress_made.append((self._world.now, before + display.done))

            display.advance = advance  # type: ignore[method-assign]
        return display


class _Machine:
    """A Kaggle session: every piece of work that is replaced, and what it takes."""

    def __init__(self, world: World, scenario: Scenario, kinds: dict[str, FileKind]) -> None:
        self.world, self.scenario, self.costs = world, scenario, scenario.costs
        self.cores = Resource(world, scenario.costs.cores, 1.0)
        self.disk = Resource(world, scenario.costs.disk, scenario.costs.stream)
        self.kinds = kinds
        self.process = 1  # of the attempts
        if scenario.stall is not None:
            world.threading.Thread(target=self._stall, args=scenario.stall, name="stall").start()

    def _stall(self, since: float, seconds: float) -> None:
        self.world.sleep(since)
        self.disk.set_capacity(0.0)
        self.world.sleep(seconds)
        self.disk.set_capacity(self.costs.disk)

    def compute(self, seconds: float, threads: int = 1) -> None:
        """Work of so many core-seconds of the measurements."""
        self.cores.use(seconds * self.costs.slower, threads)

    def read(self, size: float) -> None:
        """A file, or a part of one."""
        self.world.sleep(self.costs.latency_s)
        self.disk.use(size)

    def survey_one(self, file: tuple[str, Path]) -> Surveyed:
        """In the place of reading a head."""
        self.read(64 * 1024)
        self.compute(self.costs.head_s)
        kind = self.kinds[file[0]]
        facts = Kind(group_of(kind), 0, 0, "", 0, None, False, None, 0)
        return Surveyed(file[0], file[1], int(kind.coded * self.costs.size), facts)

    def prove(self, examples: Any, extra: Any, *rest: Any, limit_s: float, **more: Any) -> Proof:
        """In the place of decoding examples twice: everything is proven, if there is time."""
        self.world.sleep(min(self.costs.proof_s, limit_s))
        if self.costs.proof_s > limit_s:
            return Proof((), tuple(extra), unfinished=len(examples))
        names = list(extra)
        return Proof(tuple(Verdict(group, (), files=2, proven=names) for group in examples), tuple(names))

    def read_image(self, path: Path, image_id: str, image: object, trust: object, coarser: int) -> Rendered:
        """In the place of a file to an image."""
        frame = self.read_frame(path, image_id)
        return self.render_pyramid((frame, None), image, coarser)

    def read_frame(self, path: Path, image_id: str) -> SimpleNamespace:
        """In the place of a file to its codestream."""
        kind = self.kinds[image_id]
        self.read(kind.coded * self.costs.size)
        return SimpleNamespace(kind=kind, **group_of(kind)._asdict())

    def render_pyramid(self, pyramid: tuple[SimpleNamespace, object], image: object, coarser: int) -> Rendered:
        """In the place of decoding what no GPU has decoded, and rendering it."""
        frame, pixels = pyramid
        fixed = self.costs.render_s
        decoding = 0.0 if pixels is not None else frame.kind.cpu_s - fixed
        self.compute(fixed + decoding * (self.costs.halving**coarser if frame.kind.wavelet else 1.0))
        return Rendered(np.zeros((2, 1), np.uint8), Box(0, 0, 2, 1, False))

    def load_model(self, bundle: Bundle) -> SimpleNamespace:
        """In the place of a network: its first batch takes longer, and a lost GPU raises."""
        traced: list[bool] = []

        def run(pictures: np.ndarray) -> np.ndarray:
            if not traced:
                traced.append(True)
                self.world.sleep(self.costs.trace_s)
            gone = self.scenario.lost_scorer is not None and self.world.now >= self.scenario.lost_scorer
            if gone and self.process == 1:
                raise RuntimeError("CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure")
            if self.costs.gpu_s is None or (gone and not self.scenario.spare):
                self.compute(self.costs.forward_s * len(pictures), self.costs.cores)
            else:
                self.world.sleep(self.costs.gpu_s * len(pictures))
            return np.zeros((len(pictures), 1), np.float32)

        return SimpleNamespace(output_shape=(None, 1), predict_on_batch=run)


class _Gpu:
    """In the place of `dicom.dali.DaliDecoder`."""

    def __init__(self, machine: _Machine, number: int) -> None:
        self.name, self.batch_size, self._machine = f"gpu{number}", 8, machine
        last = number == machine.scenario.decoding_gpus - 1
        self._lost = machine.scenario.lost_decoder if last else None

    def takes(self, frame: SimpleNamespace, facts: object) -> bool:
        """JPEG 2000, which takes the threads longest."""
        return bool(frame.kind.wavelet)

    def decode(self, frames: list[SimpleNamespace]) -> list[np.ndarray | DecodeError]:
        """Pixels; after the loss, an error for each."""
        world = self._machine.world
        if self._lost is not None and world.now >= self._lost:
            return [DecodeError("the GPU's context is lost") for _ in frames]
        world.sleep(self._machine.costs.gpu_decode_s * len(frames))
        return [np.ones((1, 1), np.uint16) for _ in frames]


def group_of(kind: FileKind) -> Group:
    """As the proof groups it."""
    return Group("1.2.840.10008.1.2.4.90" if kind.wavelet else "1.2.840.10008.1.2.4.70", 12, 12, False, "MONOCHROME2")


@contextmanager
def _in_the_place_of_work(machine: _Machine) -> Iterator[None]:
    """Put simulated time and work where the package looks for the real ones."""
    world, stream, gpus = machine.world, rsna_kit.imaging.stream, machine.scenario.decoding_gpus
    names = [f"member{number}" for number in range(machine.scenario.members)]
    bundles = [Bundle(Path(name), Config(), 0.5, {"sha256": {"model.weights.h5": name}}) for name in names]
    members = Members(tuple(Member(bundle, 1 / len(bundles)) for bundle in bundles), 0.5)
    recipe, save = rsna_kit.recipes.infer, rsna_kit.recipes.infer._write_results

    def write_results(*arguments: Any) -> pd.DataFrame:
        world.sleep(machine.costs.write_s)
        return save(*arguments)

    replaced: list[tuple[Any, dict[str, Any]]] = [
        (rsna_kit.runtime.clock, {"time": world.time}),
        (rsna_kit.runtime.events, {"time": world.time}),
        (rsna_kit.runtime.threads, {"time": world.time, "threading": world.threading, "queue": world.queue}),
        (stream, {"time": world.time, "threading": world.threading, "read_image": machine.read_image,
                  "read_frame": machine.read_frame, "check_stream": lambda frame: SimpleNamespace(precision=12),
                  "Pyramid": lambda frame, trust, pixels: (frame, pixels), "render_pyramid": machine.render_pyramid}),
        (rsna_kit.dicom.survey, {"_survey_one": machine.survey_one}),
        (rsna_kit.dicom.proof, {"prove": machine.prove}),
        (rsna_kit.dicom.dali, {"DaliDecoder": lambda number: _Gpu(machine, number), "gpu_count": lambda: gpus}),
        (rsna_kit.models.ensemble, {"load_model": machine.load_model}),
        (os, {"fsync": lambda file: None}),  # hundreds of savings; what one takes is `write_s`
        (recipe, {"open_members": lambda paths, events: members, "_write_results": write_results}),
    ]  # fmt: skip
    with ExitStack() as stack:
        for module, values in replaced:
            stack.enter_context(patch.multiple(module, **values))
        yield
