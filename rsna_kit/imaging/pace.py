"""Whether images come fast enough for the clock, and what is given up when they do not.

A run that would not end in time gives up accuracy before it gives up images. Who is slow decides what: where it is the
models, they give up work (TTA, then members); where it is decoding, lossless JPEG 2000 is halved once more, which makes
it three times faster. The consumer's waiting tells which.
"""

from __future__ import annotations

from collections.abc import Callable

from rsna_kit.runtime.clock import Clock, format_duration

MOST_COARSER = 2
_EVIDENCE_S = 30.0  # of work since the last change, before the next is thought of
_EVIDENCE_IMAGES = 64
_WORTH = 0.2  # share of the time that something must take before giving it up helps


class Pace:
    """Decides how much coarser images must become, and when the models must do less.

    Args:
        clock: its limit is what must be kept.
        total: images to come.
        reserve_s: seconds of the limit that are needed for other things at the end.
        say: told when something is given up.
        most: halvings that may be given up; 0 where they are of no use.
        lighten: gives up the next part of the models' work and says what; None when nothing is left.

    Attributes:
        coarser: halvings given up so far, 0 to `most`.
        lightened: what the models gave up, in order, each with the number of images that had come by then.
    """

    def __init__(
        self,
        clock: Clock,
        total: int,
        reserve_s: float,
        say: Callable[[str], None],
        most: int = MOST_COARSER,
        lighten: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.coarser, self._most = 0, most
        self.lightened: list[dict[str, str | int]] = []
        self._clock, self._total, self._reserve_s, self._say = clock, total, reserve_s, say
        self._lighten: Callable[[], str | None] | None = lighten
        self.begin(0, 0.0)

    def begin(self, done: int, waited_s: float) -> None:
        """Forget what was before: a first batch, for which the networks are traced, says nothing of the others."""
        self._from_done, self._from_waited_s, self._from_s = done, waited_s, self._clock.elapsed_s()

    def update(self, done: int, waited_s: float) -> int:
        """Look at the clock; returns `coarser`.

        Args:
            done: images that have come.
            waited_s: seconds that the consumer has spent waiting for them.
        """
        images, seconds = done - self._from_done, self._clock.elapsed_s() - self._from_s
        if images < _EVIDENCE_IMAGES or seconds < _EVIDENCE_S:
            return self.coarser
        needed = (self._total - done) * seconds / images
        left = self._clock.remaining_s() - self._reserve_s
        waiting = (waited_s - self._from_waited_s) / seconds
        self.begin(done, waited_s)
        if needed > left:
            given_up = self._give_up(waiting, done)
            if given_up:
                self._say(
                    f"{self._total - done} images at this pace need {format_duration(needed)}, "
                    f"{format_duration(left)} are left: {given_up}"
                )
        return self.coarser

    def _give_up(self, waiting: float, done: int) -> str | None:
        """What is given up, in words: first where the greater part of the time goes, then where it still helps."""
        decoding, models = (lambda: self._decode_coarser(waiting)), (lambda: self._do_less(1 - waiting, done))
        first, second = (decoding, models) if waiting > 0.5 else (models, decoding)
        return first() or second()

    def _decode_coarser(self, share: float) -> str | None:
        if share <= _WORTH or self.coarser == self._most:
            return None
        self.coarser += 1
        return f"JPEG 2000 is decoded {2**self.coarser} times coarser from here on"

    def _do_less(self, share: float, done: int) -> str | None:
        if share <= _WORTH or self._lighten is None:
            return None
        given_up = self._lighten()
        if given_up is None:
            self._lighten = None
            return None
        self.lightened.append({"given_up": given_up, "after_images": done})
        return f"{given_up} is left out from here on"
