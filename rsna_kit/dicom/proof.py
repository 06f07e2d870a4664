"""Example files of every group → which decoders may be believed for it: proof before trust.

A decoder that is wrong without an error costs a whole run, and nobody notices: it is found here, in the first minute,
by decoding a few files of each group twice. What two decoders of the ladder agree on is the reference; they are
separate builds, some of one library family, so a fault of the family itself is not seen. Whichever gives something
else is switched off for that group. An extra decoder, outside the ladder (a GPU, a binding that reduces), is believed
only where it gave the reference, bit for bit: not in a group that has no reference or was never seen.

No evidence are files that cannot be read, that only one decoder can read, and blank ones: a decoder that gives zeros
is right about those. Then the next example is taken.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rsna_kit.dicom.codestream import StreamFacts
from rsna_kit.dicom.decode import backends, check_stream, decode_with, holds_a_picture, is_constant, one_line
from rsna_kit.dicom.frame import EncodedFrame, read_frame
from rsna_kit.dicom.trust import Group, Trust, group_of
from rsna_kit.runtime.errors import ImageError
from rsna_kit.runtime.hardware import cpu_count

Decoder = Callable[[EncodedFrame], np.ndarray | None]
"""Stored pixels as `decode` gives them (uint16, rows x columns), None for frames it does not take, or any exception."""

# The inverse transforms of lossy JPEG and of the 9/7 wavelet are defined up to rounding (T.81 A.3.3, T.800 F.3.8), so
# two right decoders may be this many levels apart. libjpeg-turbo and dicomsdl differ by 2 on a real 12-bit file.
_ROUNDING = 2
_LOSSY_JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")


@dataclass
class Verdict:
    """What was found out about one group.

    Attributes:
        group: of the examples.
        decoders: the installed rungs of the ladder, in its order.
        files: examples with a reference.
        agreed: the rungs that gave it, in the ladder's order.
        proven: extra decoders that gave the reference for each of them.
        off: decoder, of the ladder or extra, that is switched off → why.
        passed_over: why other examples are no evidence, in the order in which they were met.
    """

    group: Group
    decoders: tuple[str, ...]
    files: int = 0
    agreed: list[str] = field(default_factory=list)
    proven: list[str] = field(default_factory=list)
    off: dict[str, str] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        """All of it for people, in one line."""
        if self.files:
            said = [f"{self.files} file{'s' * (self.files > 1)}, {_listed(self.agreed)} agree"]
        elif len(self.decoders) < 2:
            said = [f"not proven, {_listed(self.decoders) or 'no decoder'} alone decodes it"]
        else:
            said = ["not proven, no example on which two decoders agree"]
        if self.proven:
            said.append(f"proven: {_listed(self.proven)}")
        said += [f"switched off: {name} ({why})" for name, why in self.off.items()]
        if self.passed_over:
            more = f", and {len(self.passed_over) - 1} more" if len(self.passed_over) > 1 else ""
            said.append(f"passed over: {self.passed_over[0]}{more}")
        return f"{self.group}: {'; '.join(said)}"


@dataclass(frozen=True)
class Proof:
    """The verdicts in the order of the groups, and the trust that follows from them."""

    verdicts: tuple[Verdict, ...]
    extra: tuple[str, ...]

    @property
    def trust(self) -> Trust:
        """For `decode` and whoever asks an extra decoder."""
        return Trust(
            off=frozenset((verdict.group, name) for verdict in self.verdicts for name in verdict.off),
            extra=frozenset(self.extra),
            proven=frozenset((verdict.group, name) for verdict in self.verdicts for name in verdict.proven),
        )

    @property
    def lines(self) -> list[str]:
        """One line a group."""
        return [verdict.line for verdict in self.verdicts]

    def to_dict(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return {
            "extra": list(self.extra),
            "groups": [
                {
                    "group": verdict.group._asdict(), "files": verdict.files, "decoders": list(verdict.decoders),
                    "agreed": verdict.agreed, "proven": verdict.proven, "off": verdict.off,
                    "passed_over": verdict.passed_over,
                }
                for verdict in self.verdicts
            ],
        }  # fmt: skip


def prove(
    examples: Mapping[Group, Sequence[tuple[str, Path]]],
    extra: Mapping[str, Decoder] | None = None,
    per_group: int = 2,
    workers: int = 0,
    say: Callable[[str], None] | None = None,
) -> Proof:
    """Decode examples of every group by two decoders and by all extra ones, and compare.

    Args:
        examples: group → image ids and files; more than `per_group` of them, so that blank and damaged ones can be
            passed over.
        extra: name → decoder outside the ladder. Groups are proven side by side, but each of these is asked for one
            frame at a time.
        per_group: how many files count as evidence for a group.
        workers: threads, 0 for one per core.
        say: told the line of a group when it and those before it are done, from the calling thread.

    Returns:
        The same for the same files, whatever the number of threads.

    Raises:
        ValueError: a file that is of another group than it is an example of.
    """
    court = _Court(dict(extra or {}), per_group)
    verdicts = []
    with ThreadPoolExecutor(workers or cpu_count(), thread_name_prefix="prove") as pool:
        for verdict in pool.map(court.judge, examples, examples.values()):
            verdicts.append(verdict)
            if say is not None:
                say(verdict.line)
    return Proof(tuple(verdicts), tuple(court.extra))


class _Court:
    """What is the same for all groups."""

    def __init__(self, extra: dict[str, Decoder], per_group: int) -> None:
        self.extra = extra
        self._per_group = per_group
        self._turns = {name: threading.Lock() for name in extra}

    def judge(self, group: Group, files: Sequence[tuple[str, Path]]) -> Verdict:
        """One group, one example after the other."""
        decoders = tuple(name for name, installed in backends(group.transfer_syntax) if installed)
        verdict = Verdict(group, decoders)
        agreed: set[str] = set()
        asked: set[str] = set()
        for image_id, path in files if len(decoders) > 1 else ():
            if verdict.files == self._per_group:
                break
            try:
                frame = read_frame(path, image_id)
                facts = check_stream(frame)
            except ImageError as error:
                verdict.passed_over.append(str(error))
                continue
            if group_of(frame, facts) != group:
                raise ValueError(f"{frame.where}: is of group {group_of(frame, facts)}, expected {group}")
            reference = self._reference(frame, facts, verdict, agreed)
            if reference is not None:
                verdict.files += 1
                self._ask_extra(frame, reference, verdict, asked)
        verdict.agreed = [name for name in decoders if name in agreed and name not in verdict.off]
        verdict.proven = [name for name in self.extra if name in asked and name not in verdict.off]
        return verdict

    def _reference(
        self, frame: EncodedFrame, facts: StreamFacts | None, verdict: Verdict, agreed: set[str]
    ) -> np.ndarray | None:
        """What two rungs agree on, the first two that do; the others that were asked are judged by it."""
        tolerance, answers, failures = _tolerance(frame, facts), dict[str, np.ndarray](), []
        for name in verdict.decoders:
            if name in verdict.off:
                continue
            try:
                answer = decode_with(name, frame)
            except Exception as error:  # whatever a native library raises; the ladder asks the next one, too
                failures.append(f"{name}: {one_line(error)}")
                continue
            same = [other for other, its in answers.items() if _same(its, answer, tolerance, frame.signed)]
            answers[name] = answer
            if not same:
                continue
            reference = answers[same[0]]
            if is_constant(reference):
                verdict.passed_over.append(f"{frame.where}: {same[0]} and {name} find it blank")
                return None
            agreed.update((*same, name))
            for other in answers.keys() - {*same, name}:
                verdict.off[other] = _difference(answers[other], reference, frame)
            return reference
        if len(answers) > 1:
            failures.append(f"{_listed(answers)} differ")
        verdict.passed_over.append(f"{frame.where}: no two decoders agree ({'; '.join(failures)})")
        constant = {name for name, answer in answers.items() if is_constant(answer)}
        if constant != answers.keys() and holds_a_picture(frame):
            verdict.off |= {name: f"gives {answers[name][0, 0]} everywhere in {frame.where}" for name in constant}
        return None

    def _ask_extra(self, frame: EncodedFrame, reference: np.ndarray, verdict: Verdict, asked: set[str]) -> None:
        """Every extra decoder in turn; those that take the frame are added to `asked`."""
        for name, decoder in self.extra.items():
            if name in verdict.off:
                continue
            try:
                with self._turns[name]:
                    answer = decoder(frame)
            except Exception as error:  # it may be anything
                verdict.off[name] = f"fails on {frame.where}: {one_line(error)}"
                continue
            if answer is None:
                continue
            asked.add(name)
            if answer.shape != reference.shape or answer.dtype != reference.dtype:
                verdict.off[name] = (
                    f"gives {answer.dtype} {answer.shape} for {frame.where}, expected {reference.dtype} "
                    f"{reference.shape}"
                )
            elif not np.array_equal(answer, reference):
                verdict.off[name] = _difference(answer, reference, frame)


def _tolerance(frame: EncodedFrame, facts: StreamFacts | None) -> int:
    """How many levels two right decoders may be apart."""
    nine_seven = facts is not None and facts.wavelet is not None and not facts.wavelet.reversible
    return _ROUNDING if nine_seven or frame.transfer_syntax in _LOSSY_JPEG else 0


def _same(one: np.ndarray, other: np.ndarray, tolerance: int, signed: bool) -> bool:
    if np.array_equal(one, other):
        return True
    return tolerance > 0 and int(_distance(one, other, signed).max()) <= tolerance


def _distance(one: np.ndarray, other: np.ndarray, signed: bool) -> np.ndarray:
    """Levels between two arrays of stored pixels, int32."""
    kind = np.int16 if signed else np.uint16
    return np.abs(np.subtract(one.view(kind), other.view(kind), dtype=np.int32))


def _difference(answer: np.ndarray, reference: np.ndarray, frame: EncodedFrame) -> str:
    if is_constant(answer):
        return f"gives {answer[0, 0]} everywhere in {frame.where}"
    distance = _distance(answer, reference, frame.signed)
    return (
        f"{np.count_nonzero(distance)} of {distance.size} pixels differ, largest difference {distance.max()}, "
        f"in {frame.where}"
    )


def _listed(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = ["", *names]
    return f"{', '.join(filter(None, most))} and {last}" if any(most) else last
