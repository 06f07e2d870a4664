"""Example files of every group → which decoders may be believed for it: proof before trust.

A decoder that is wrong without an error costs a whole run, and nobody notices: it is found here, in the first minute,
by decoding a few files of each group twice. What two of `DECODERS` agree on is the reference; they are
separate builds, some of one library family, so a fault of the family itself is not seen. Whichever gives something
else is switched off for that group. An extra decoder, outside that table (a GPU, a binding that reduces), is believed
only where it gave the reference, bit for bit: not in a group that has no reference or was never seen. Where one
alone gives an answer, an extra decoder that gives the same confirms it.

No evidence are files that cannot be read, that only one decoder can read, and blank ones: a decoder that gives zeros
is right about those. Then the next example is taken. One damaged file proves nothing against an extra decoder either,
because lenient decoders make different pictures of it: right more often than wrong is enough.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rsna_kit.dicom.decode import Group, Trust, backends, decode_with, group_of, is_constant
from rsna_kit.dicom.frame import EncodedFrame, check_stream, read_frame
from rsna_kit.dicom.stored import alike, distance, rounding
from rsna_kit.runtime.errors import DecodeError, ImageError, one_line
from rsna_kit.runtime.hardware import cpu_count
from rsna_kit.runtime.threads import in_daemons

Decoder = Callable[[EncodedFrame], np.ndarray | None]
"""Stored pixels as `decode` gives them (uint16, rows x columns), None for frames it does not take, or any exception."""

FILES = 3  # of each group that count as evidence


@dataclass
class Verdict:
    """What was found out about one group.

    Attributes:
        group: of the examples.
        decoders: those of `DECODERS` that are installed, in its order.
        files: examples with a reference.
        agreed: those that gave it, in that order; one alone where extra decoders confirm it.
        proven: extra decoders that gave the reference more often than not.
        off: decoder, extra or not, that is switched off → why.
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
            named = self.agreed if len(self.agreed) > 1 else [*self.agreed, *self.proven]
            said = [f"{self.files} file{'s' * (self.files > 1)}, {_listed(named)} agree"]
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
    """The verdicts in the order of the groups, and the trust that follows from them.

    `unfinished` is how many groups have no verdict because the time was over: no extra decoder is believed for them.
    """

    verdicts: tuple[Verdict, ...]
    extra: tuple[str, ...]
    unfinished: int = 0

    @property
    def trust(self) -> Trust:
        """For `decode` and whoever asks an extra decoder."""
        return Trust(
            off=frozenset((verdict.group, name) for verdict in self.verdicts for name in verdict.off),
            extra=frozenset(self.extra),
            proven=frozenset((verdict.group, name) for verdict in self.verdicts for name in verdict.proven),
        )


def prove(
    examples: Mapping[Group, Sequence[tuple[str, Path]]],
    extra: Mapping[str, Decoder] | None = None,
    workers: int = 0,
    limit_s: float = math.inf,
) -> Proof:
    """Decode examples of every group by two decoders and by all extra ones, and compare.

    Args:
        examples: group → image ids and files; more than `FILES` of them, so that blank and damaged ones can be
            passed over.
        extra: name → decoder outside `DECODERS`; groups are proven side by side, so several threads ask it.
        workers: threads, 0 for one per core.
        limit_s: seconds after which groups that are not done are left, one in which a decoder hangs among them.

    Returns:
        The same for the same files, whatever the number of threads, when the time suffices.
    """
    extra = extra or {}
    done = dict(in_daemons(lambda case: _judge(extra, *case), examples.items(), workers or cpu_count(), limit_s))
    return Proof(tuple(done[number] for number in sorted(done)), tuple(extra), len(examples) - len(done))


def _judge(extra: Mapping[str, Decoder], group: Group, files: Sequence[tuple[str, Path]]) -> Verdict:
    """One group, one example after the other."""
    verdict = Verdict(group, tuple(name for name, installed in backends(group.transfer_syntax) if installed))
    alone = len(verdict.decoders) == 1
    right, wrong, agreed = Counter[str](), dict[str, list[str]]((name, []) for name in extra), set[str]()
    for image_id, path in files if verdict.decoders and (extra or not alone) else ():
        if verdict.files == FILES:
            break
        try:
            frame = read_frame(path, image_id)
            reference, agreeing, trouble = _reference(frame, verdict)
        except ImageError as error:
            verdict.passed_over.append(str(error))
            continue
        asked = ((name, _fault(decoder, reference, frame)) for name, decoder in extra.items())
        faults = {name: fault for name, fault in asked if fault is not None}
        if alone and not faults:
            break  # nothing beside the one decodes such frames
        if len(agreeing) > 1 or "" in faults.values():
            verdict.files += 1
            agreed.update(agreeing)
        else:
            trouble += [f"{_listed([*agreeing, *faults])} differ"] if faults else []
            verdict.passed_over.append(f"{frame.where}: no two decoders agree ({'; '.join(trouble)})")
            if not alone:
                continue  # the other decoders cannot read it: the file is suspect, nobody is judged by it
        for name, fault in faults.items():
            right[name] += not fault
            wrong[name] += [fault] if fault else []
    for name, faults_of in wrong.items():
        if right[name] > len(faults_of):
            verdict.proven.append(name)
        elif faults_of:
            verdict.off[name] = faults_of[0]
    verdict.agreed = [name for name in verdict.decoders if name in agreed and name not in verdict.off]
    if len(verdict.agreed) + len(verdict.proven) < 2:  # the second one was switched off
        verdict.files, verdict.agreed = 0, []
    return verdict


def _reference(frame: EncodedFrame, verdict: Verdict) -> tuple[np.ndarray, list[str], list[str]]:
    """Ask one decoder after the other, until two agree; the others that were asked are judged by these.

    Returns:
        The reference and who gave it, or the only answer there is and who gave that; last, what the others said.

    Raises:
        DecodeError: why the file is no evidence.
    """
    facts = check_stream(frame)
    if group_of(frame, facts) != verdict.group:  # the file has changed, or a survey's head says less than the file
        raise DecodeError(f"{frame.where}: is of group {group_of(frame, facts)}, expected {verdict.group}")
    answers, trouble = dict[str, np.ndarray](), list[str]()
    for name in verdict.decoders:
        if name in verdict.off:
            continue
        try:
            answer = decode_with(name, frame)
        except Exception as error:  # whatever a native library raises; `decode` asks the next one, too
            trouble.append(f"{name}: {one_line(error)}")
            continue
        same = [other for other, its in answers.items() if alike(its, answer, rounding(facts), frame.signed)]
        answers[name] = answer
        if not same:
            continue
        reference, agreeing = answers[same[0]], [*same, name]
        if is_constant(reference):
            raise DecodeError(f"{frame.where}: {_listed(agreeing)} find it blank")
        verdict.off |= {n: _difference(answers[n], reference, frame) for n in answers.keys() - set(agreeing)}
        return reference, agreeing, trouble
    if len(answers) == 1 and not is_constant(answer := next(iter(answers.values()))):
        return answer, [*answers], trouble
    if answers:
        trouble.append(f"{_listed(answers)} {'differ' if len(answers) > 1 else 'finds it blank'}")
    raise DecodeError(f"{frame.where}: no two decoders agree ({'; '.join(trouble)})")


def _listed(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = ["", *names]
    return f"{', '.join(filter(None, most))} and {last}" if any(most) else last


def _fault(decoder: Decoder, reference: np.ndarray, frame: EncodedFrame) -> str | None:
    """What is wrong with an extra decoder's answer, "" when it is the reference bit for bit; None for no answer."""
    try:
        answer = decoder(frame)
        if answer is None or (answer.dtype == reference.dtype and np.array_equal(answer, reference)):
            return None if answer is None else ""
        if (answer.dtype, answer.shape) == (reference.dtype, reference.shape):
            return _difference(answer, reference, frame)
        expected = f"{reference.dtype} {reference.shape}"
        return f"gives {answer.dtype} {answer.shape} for {frame.where}, expected {expected}"
    except Exception as error:  # it may be anything
        return f"fails on {frame.where}: {one_line(error)}"


def _difference(answer: np.ndarray, reference: np.ndarray, frame: EncodedFrame) -> str:
    """In what way an answer that has the reference's shape and type is another picture."""
    if is_constant(answer):
        return f"gives {answer[0, 0]} everywhere in {frame.where}"
    levels = distance(answer, reference, frame.signed)
    return (
        f"{np.count_nonzero(levels)} of {levels.size} pixels differ, largest difference {levels.max()}, "
        f"in {frame.where}"
    )
