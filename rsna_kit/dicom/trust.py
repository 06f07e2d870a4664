"""Which decoders may be believed for which kind of frame.

A decoder can be right for one kind of frame and silently wrong for another: nvJPEG before 13.0.2 gives zeros for
lossless streams of 9 to 15 bits, DALI stretches 12-bit JPEG 2000 sixteenfold on a GPU. So belief is kept by `Group`.
`proof.prove` takes it away from the ladder's decoders where they are wrong, and gives it to the others where they are
right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rsna_kit.dicom.codestream import StreamFacts
from rsna_kit.dicom.frame import EncodedFrame


class Group(NamedTuple):
    """What decides which code of a decoder runs."""

    transfer_syntax: str
    precision: int  # bits, of the codestream; of the header where there is none
    bits_stored: int
    signed: bool
    photometric: str

    def __str__(self) -> str:
        sign = " signed" if self.signed else ""
        return f"{self.transfer_syntax} {self.precision} bit ({self.bits_stored} stored{sign}) {self.photometric}"


def group_of(frame: EncodedFrame, facts: StreamFacts | None) -> Group:
    """The group of a frame; `facts` of its codestream, None for syntaxes without one."""
    precision = frame.bits_allocated if facts is None else facts.precision
    return Group(frame.transfer_syntax, precision, frame.bits_stored, frame.signed, frame.photometric)


@dataclass(frozen=True)
class Trust:
    """What was found out about decoders; without anything found out, all are believed.

    Attributes:
        off: pairs of group and decoder that are switched off.
        extra: decoders outside the ladder that were up for proof. They are believed for the groups in `proven` and
            for no others, not even for groups that were never seen.
        proven: pairs of group and extra decoder.
    """

    off: frozenset[tuple[Group, str]] = frozenset()
    extra: frozenset[str] = frozenset()
    proven: frozenset[tuple[Group, str]] = frozenset()

    def allows(self, decoder: str, frame: EncodedFrame, facts: StreamFacts | None) -> bool:
        """Whether `decoder` may be asked for this frame."""
        if not self.off and decoder not in self.extra:
            return True
        pair = (group_of(frame, facts), decoder)
        return pair in self.proven if decoder in self.extra else pair not in self.off


TRUST_ALL = Trust()
