"""A Kaggle kernel's session: what is attached, what it runs on, and a verdict at its end, whatever happens between.

A kernel is one short script: it makes this library importable and hands its own part to `run`. What is looked at here
comes before any work, so that a session in which something is missing ends in its first minute. Nothing of the
environment is printed but our own settings and those of the libraries.
"""

from __future__ import annotations

import os
import platform
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import rsna_kit
from rsna_kit.competition.paths import Source, attached_sources, find_bundles, find_inputs, input_root
from rsna_kit.config import Config, preset, with_overrides
from rsna_kit.runtime.clock import Clock, parse_duration
from rsna_kit.runtime.errors import MissingDependencyError, RsnaKitError, UsageError, one_line
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import read_json
from rsna_kit.runtime.hardware import commit, cpu_count, gpus, kaggle_image, memory_gib, versions
from rsna_kit.runtime.lazy import check_surroundings, settle
from rsna_kit.session.attempts import ATTEMPT, BEGAN, MOST_ATTEMPTS, count_rows, run_attempts
from rsna_kit.session.contents import CONTENTS, check_contents
from rsna_kit.session.offline import install_missing
from rsna_kit.session.verdict import VERDICT, redacted, write_verdict

_ORDER = {"model": "the Kaggle Model", "kernel": "the output of the kernel", "dataset": "the dataset"}
OUTPUT_BYTES = 20e9  # what /kaggle/working may hold at the end of a session
_WHEELS = "rsna-wheels"
_IN_WHEELS = {"dicomsdl", "imagecodecs"}
# What the variables begin with that change what libraries do without being asked for.
_OF_LIBRARIES = ("KERAS_", "TF_", "XLA_", "NVIDIA_TF32", "CUDA_VISIBLE", "JAX_", "OMP_", "PYTHON")


class Session:
    """One run of a kernel.

    Args:
        kernel: "prepare", "train" or "infer".
        settings: the kernel's SETTINGS; an environment variable RSNA_KIT_<NAME> wins over a value of it.
    """

    def __init__(self, kernel: str, settings: Mapping[str, str]) -> None:
        self.kernel = kernel
        self.settings = {name: os.environ.get(f"RSNA_KIT_{name}", value) for name, value in settings.items()}
        self.input = input_root()
        self.working = Path(os.environ.get("RSNA_KIT_WORKING") or "/kaggle/working")
        self.rerun = bool(os.environ.get("KAGGLE_IS_COMPETITION_RERUN"))
        self.sources = attached_sources(self.input)
        self.gpus = gpus()
        self.events = Events(self.working / "events.jsonl")
        self.facts: dict[str, Any] = {}  # what goes into the verdict beside the counts
        self.attempt = int(os.environ.get(ATTEMPT) or 1)
        self._began = Clock(since=float(os.environ[BEGAN]) if BEGAN in os.environ else None)

    @property
    def clock(self) -> Clock:
        """What is left of TIME_LIMIT, counted from the session's start."""
        return Clock(parse_duration(self.settings["TIME_LIMIT"]) - self._began.elapsed_s())

    def config(self) -> Config:
        """The configuration: PRESET, then SET."""
        return with_overrides(preset(self.settings.get("PRESET", "default")), self.words("SET"))

    def words(self, name: str) -> list[str]:
        """A setting that is a list, separated by blanks."""
        return self.settings[name].split()

    def open(self, needs: Sequence[str]) -> None:
        """Say what this session is, see that everything attached is whole, install what the image lacks.

        Raises:
            RsnaKitError: an attached folder that is not whole, or a module in `needs` that nothing brings.
        """
        python, image, folder = platform.python_version(), kaggle_image(), Path(rsna_kit.__file__).parents[1]
        self.facts = {"commit": commit(), "library": None, "image": image, "python": python, "gpus": self.gpus}
        self._say("kernel", f"{self.kernel}, {'the scoring run' if self.rerun else 'not the scoring run'}")
        self._say("machine", f"{cpu_count()} cores, {memory_gib():.1f} GiB, GPU: {' + '.join(self.gpus) or 'none'}")
        self._say("image", f"{f'Kaggle, {image}' if image else 'not Kaggle'}; Python {python}")
        if not self.gpus and "REQUIRE_GPU" in self.settings:
            self._say("NO GPU", "whatever enable_gpu and machine_shape ask for, this session has none: slower")
        self._say("attached", self.attached().replace("\n", "\n           "))
        self._say("settings", _pairs(self.settings))
        for source in self.sources:
            if (source.path / CONTENTS).is_file():
                check_contents(source.path, digests=False)
        built = "a checkout"
        if (folder / CONTENTS).is_file():
            self.facts["library"] = check_contents(folder, digests=True)["sha256"]
            built = f"sha256 {self.facts['library']}, whole"
        self._say("library", f"{folder}: commit {self.facts['commit']}, {built}")
        for source in self.sources:
            if source.kind == "dataset" and source.reference.rpartition("/")[2] == _WHEELS:
                self._say("wheels", install_missing(source.path, gpu=bool(self.gpus)))
        self._say("packages", " ".join(f"{name}={version}" for name, version in versions().items()))
        libraries = {name: value for name, value in sorted(os.environ.items()) if name.startswith(_OF_LIBRARIES)}
        self._say("environ", redacted(_pairs(libraries)) or "nothing that concerns us")
        missing = check_surroundings(needs)
        if missing:
            advice = f"Attach the dataset {_WHEELS}" if _IN_WHEELS.issuperset(missing) else "Use Kaggle's Python image"
            why = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
            raise MissingDependencyError(f"{why}. {advice}. Attached is:\n{self.attached()}")

    def attached(self) -> str:
        """What is attached, a line for each."""
        lines = [f"{source.kind} {source.reference}" for source in self.sources]
        return "\n".join(lines) or f"nothing ({self.input} is empty)"

    def require_gpu(self) -> None:
        """End a session that would train for hours what a GPU trains in minutes, as REQUIRE_GPU says.

        Raises:
            RsnaKitError: no GPU, or none that TensorFlow can use.
        """
        wanted = self.settings["REQUIRE_GPU"]
        if wanted not in ("yes", "no", "auto"):
            raise UsageError(f"REQUIRE_GPU: got {wanted!r}, expected yes, no or auto")
        if wanted == "no" or self.rerun or (wanted == "auto" and kaggle_image() is None):
            return
        again = "Push the kernel again or choose the accelerator in its settings, or set REQUIRE_GPU to no."
        if not self.gpus:
            raise RsnaKitError(
                "no GPU in this session. Kaggle ignores machine_shape at times, and gives none when "
                f"the week's quota is used up. {again}"
            )
        if os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow":
            import tensorflow

            if not tensorflow.config.list_physical_devices("GPU"):
                raise RsnaKitError(f"TensorFlow {tensorflow.__version__} sees none of {self.gpus}. {again}")

    def prepared(self) -> tuple[list[Path], list[Path]]:
        """The folders written by `prepare` that are attached: all but those that EXTRA names, and those.

        Raises:
            UsageError: none of either.
        """
        found = [folder for source in self.sources for folder in find_inputs("manifest.json", source.path)]
        extra: list[Path] = []
        for name in self.words("EXTRA") if "EXTRA" in self.settings else []:
            root = next((source.path for source in self.sources if source.reference == name), self.input / name)
            named = [folder for folder in found if folder.is_relative_to(root)]
            if not named:
                raise UsageError(f"EXTRA: {name} holds no prepared folder. Attached is:\n{self.attached()}")
            extra += named
        own = [folder for folder in found if folder not in extra]
        if not own:
            raise UsageError(
                "expected the output of the prepare kernels, got none. Attach the kernel rsna-kit-prepare "
                f"(kernel_sources), or all that made a part. Attached is:\n{self.attached()}"
            )
        return own, extra

    def bundles(self) -> list[Path]:
        """Where the bundles come from: the sources that BUNDLES names, or else the one Model, kernel or dataset.

        Raises:
            UsageError: no bundle, or several sources of a kind that hold some.
        """
        # A checkout in the place of the library's dataset has the mammography start.
        own = Path(rsna_kit.__file__).resolve()
        others = [source for source in self.sources if not own.is_relative_to(source.path.resolve())]
        holding = {source: found for source in others if (found := find_bundles(source.path))}
        if named := self.words("BUNDLES"):
            chosen = [self._named(name) for name in named]
        else:
            kinds = [kind for kind in _ORDER if any(source.kind == kind for source in holding)]
            chosen = [source for source in holding if source.kind in kinds[:1]]
            if len(chosen) > 1:
                raise UsageError(
                    f"bundles in several sources: {', '.join(source.reference for source in chosen)}. "
                    "Detach all but one, or name those you mean in BUNDLES."
                )
        found = [folder for source in chosen for folder in find_bundles(source.path)]
        if not found:
            raise UsageError(
                "no bundle attached. Attach the output of the kernel rsna-kit-train (kernel_sources), the "
                "dataset rsna-weights or a Kaggle Model with them (model_sources). Attached is:\n"
                f"{self.attached()}"
            )
        names = " and ".join(f"{_ORDER.get(source.kind, 'the folder')} {source.reference}" for source in chosen)
        self._say("bundles", f"from {names}")
        for source in holding:
            if source not in chosen:
                self._say("", f"not used: those of {_ORDER[source.kind]} {source.reference}")
        digests = {str(folder.relative_to(self.input)): self._tell_bundle(folder) for folder in found}
        self.facts["bundles"] = {"source": [source.reference for source in chosen], "sha256": digests}
        return [source.path for source in chosen]

    def close(self, counts: Mapping[str, Any], ok: bool, reason: str) -> None:
        """Write verdict.json and print it, the last thing of a run."""
        counted = {"counts": dict(counts), "minutes": round(self._began.elapsed_s() / 60, 2)}
        peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}  # Linux counts kiB
        with suppress(Exception):
            tensorflow = sys.modules["tensorflow"]
            for number in range(len(tensorflow.config.list_physical_devices("GPU"))):
                device = f"GPU:{number}"
                peak[device] = tensorflow.config.experimental.get_memory_info(device)["peak"] / 2**30
        self.facts["memory_gib"] = {name: round(size, 2) for name, size in peak.items()}
        write_verdict(self.working, {"ok": ok, "kernel": self.kernel, "reason": reason, **counted, **self.facts})

    def _say(self, what: str, line: str) -> None:
        print(f"{what:10} {line}", flush=True)

    def _named(self, name: str) -> Source:
        for source in self.sources:
            if name in (source.reference, str(source.path.relative_to(self.input))):
                return source
        folder = self.input / name
        if not folder.is_dir() or not find_bundles(folder):
            raise UsageError(f"BUNDLES: {name} holds no bundle. Attached is:\n{self.attached()}")
        return Source("folder", name, folder)

    def _tell_bundle(self, folder: Path) -> str:
        """Say what a bundle is; returns the sha256 of its weights, which is compared when it is opened."""
        try:
            said = read_json(folder / "metadata.json")
        except (OSError, ValueError):
            said = {}  # whoever opens it says what is wrong
        digest, made = str(said.get("sha256", {}).get("model.weights.h5")), said.get("commit")
        other = "" if made == self.facts.get("commit") else f"; made by the library of another commit, {made}"
        self._say("", f"{folder.relative_to(self.input)}: weights {digest[:12]}, fold {said.get('fold')}{other}")
        return digest


def _pairs(values: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value!r}" for name, value in values.items())


def run(
    kernel: str,
    settings: Mapping[str, str],
    needs: Sequence[str],
    work: Callable[[Session], Mapping[str, Any]],
    script: str | None = None,
    progress: str = "",
) -> int:
    """Run a kernel's own part between what every session begins and ends with.

    Args:
        kernel: its name.
        settings: its SETTINGS.
        needs: modules that must be there.
        work: returns counts, ready for JSON. `ok` False makes the run fail, except the scoring run; `reason` says why.
        script: the kernel's file; None in a notebook, which has none.
        progress: CSV file in the working folder to which a run adds rows and from which it can go on. With it and
            `script`, the kernel is run in a process of its own, and the scoring run again where that died.

    Returns:
        The exit code.
    """
    settle()
    session = Session(kernel, settings)
    if script and progress and ATTEMPT not in os.environ:
        return _run_apart(session, Path(script), session.working / progress)
    counts: dict[str, Any] = {}
    try:
        session.open(needs)
        counts = dict(work(session))
        ok, reason = bool(counts.pop("ok", True)), str(counts.pop("reason", ""))
        if not ok and not reason:
            reason = (
                f"{counts.get('failed')} of {counts.get('images')} images could not be used, more than "
                "infer.max_failure_share allows"
            )
        code = 0 if ok or session.rerun else 1
        if reason:
            print(reason if ok else f"Error: {reason}", file=sys.stderr, flush=True)
    except BaseException as error:  # an interrupt, too: a verdict is all that is left of a run
        ok, code = False, 1
        deliberate = isinstance(error, RsnaKitError | OSError)  # a full disk, too, says all that there is to say
        reason = str(error) if isinstance(error, RsnaKitError) else f"{type(error).__name__}: {one_line(error)}"
        reason = redacted(reason)
        print(f"Error: {reason}" if deliberate else redacted(traceback.format_exc()), file=sys.stderr, flush=True)
    session.close(counts, ok, reason)
    if ATTEMPT in os.environ:  # a thread that does not end, or a crash in a library's own end, must not undo the run
        sys.stdout.flush()
        os._exit(code)
    return code


def _run_apart(session: Session, script: Path, progress: Path) -> int:
    """Run the script as a child; the scoring run keeps what is scored, whatever becomes of the child, or of this."""
    verdict = session.working / VERDICT
    try:
        clock = session.clock
    except UsageError:
        clock = Clock()  # the child says what is wrong with TIME_LIMIT
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this ends the child, too
        reason = run_attempts(script, progress, verdict, clock, MOST_ATTEMPTS if session.rerun else 1)
    except BaseException as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
    with suppress(Exception):
        if reason and not verdict.is_file():  # else the child has ended in one of its own
            print(f"Error: {reason}", file=sys.stderr, flush=True)
            session.close({}, False, reason)
    stands = session.rerun and count_rows(progress) > 0  # and nobody can start the scoring run again
    return 0 if stands or not reason else 1
