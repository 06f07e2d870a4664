"""Whether images come fast enough for the clock, and what is given up when they do not.

A run that would not end in time gives up detail before it gives up images: lossless JPEG 2000 is halved once more,
which makes its decoding three times faster. That helps only where decoding is what takes long, so the consumer's
waiting is watched, too.
"""

from __future__ import annotations

from collections.abc import Callable

from rsna_kit.runtime.clock import Clock, format_duration

MOST_COARSER = 2
_EVIDENCE_S = 30.0  # of work since the last change, before the next is thought of
_EVIDENCE_IMAGES = 64
_WAITING_SHARE = 0.2  # of the time: the consumer waits for images, so faster decoding helps


class Pace:
    """Decides how much coarser images must become.

    Args:
        clock: its limit is what must be kept.
        total: images to come.
        reserve_s: seconds of the limit that are needed for other things at the end.
        most: halvings that may be given up; 0 where they are of no use.
        say: told when something is given up.

    Attributes:
        coarser: halvings given up so far, 0 to `most`.
    """

    def __init__(
        self, clock: Clock, total: int, reserve_s: float, say: Callable[[str], None], most: int = MOST_COARSER
    ) -> None:
        self.coarser, self._most = 0, most
        self._clock, self._total, self._reserve_s, self._say = clock, total, reserve_s, say
        self._mark(0, 0.0)

    def _mark(self, done: int, waited_s: float) -> None:
        self._from_done, self._from_waited_s, self._from_s = done, waited_s, self._clock.elapsed_s()

    def update(self, done: int, waited_s: float) -> int:
        """Look at the clock; returns `coarser`.

        Args:
            done: images that have come.
            waited_s: seconds that the consumer has spent waiting for them.
        """
        images, seconds = done - self._from_done, self._clock.elapsed_s() - self._from_s
        if images < _EVIDENCE_IMAGES or seconds < _EVIDENCE_S or self.coarser == self._most:
            return self.coarser
        needed = (self._total - done) * seconds / images
        left = self._clock.remaining_s() - self._reserve_s
        waiting = (waited_s - self._from_waited_s) / seconds
        self._mark(done, waited_s)
        if needed > left and waiting > _WAITING_SHARE:
            self.coarser += 1
            self._say(
                f"{self._total - done} images at this pace need {format_duration(needed)}, {format_duration(left)} are "
                f"left: JPEG 2000 is decoded {2**self.coarser} times coarser from here on"
            )
        return self.coarser
