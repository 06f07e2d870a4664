"""A run against its clock: what is given up when the images that are left would not end in time.

A run that would not end in time gives up accuracy before it gives up images. Who is slow decides what: where it is the
models, they give up work (TTA, then members); where it is decoding, lossless JPEG 2000 is halved once more, which makes
it three times faster. The consumer's waiting tells which. It does not tell a slow disk from slow decoding: a halving
after which images come no faster is taken back, and not tried again for a while. So is one when there is time enough
again, after a stall.

Images differ: some take several times as long as others, and those of a patient are alike. A pace seen for n images is
uncertain by some 4 / sqrt(n) (three standard errors, where decoding times vary by 0.7 of their mean), and a shortage
must exceed that: all of it at first, and ever less towards the end, when there is no later look to put it right.
"""

from __future__ import annotations

from collections.abc import Callable

from rsna_kit.runtime.clock import Clock, format_duration

MOST_COARSER = 2
_EVIDENCE_S = 30.0  # of work since the last change, before the next is thought of
_EVIDENCE_IMAGES, _WINDOW_IMAGES = 64, 1600  # fewer say nothing; older ones are forgotten
_DOUBT = 4.0  # divided by the root of the images: the share by which a pace may be wrong
_JUDGED_IMAGES, _HELPED = 256, 1.15  # a halving is judged by so many images, and must make them so much faster
_FINER = 4.0  # times longer than a halved image, at most, does one take that is not
_WORTH = 0.3  # share of the time that something must take before giving it up helps


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
        coarser: halvings given up now, 0 to `most`.
        coarsest: the most that were given up for any image.
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
        self.coarser, self.coarsest, self._most = 0, 0, most
        self.lightened: list[dict[str, str | int]] = []
        self._clock, self._total, self._reserve_s, self._say = clock, total, reserve_s, say
        self._lighten: Callable[[], str | None] | None = lighten
        self._finer_s: float | None = None  # seconds an image took before a halving that is not judged yet
        self._vain, self._not_before = 0, 0  # halvings that did not help; images before the next is tried
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
        if self._finer_s is not None:
            if images >= _JUDGED_IMAGES:
                self._judge(seconds / images, done)
                self.begin(done, waited_s)
            return self.coarser
        needed = (self._total - done) * seconds / images
        left = self._clock.remaining_s() - self._reserve_s
        doubt = _DOUBT / images**0.5 * (1 - done / self._total)
        if needed > left * (1 + doubt):
            given_up = self._give_up((waited_s - self._from_waited_s) / seconds, seconds / images, done)
            if given_up:
                self._say(
                    f"{self._total - done} images at this pace need {format_duration(needed)}, "
                    f"{format_duration(left)} are left: {given_up}"
                )
            self.begin(done, waited_s)
        elif self.coarser and images >= _JUDGED_IMAGES and needed * _FINER < left:
            self._decode_finer(f"{format_duration(left)} are left, enough for more detail")
            self.begin(done, waited_s)
        elif images >= _WINDOW_IMAGES:
            self.begin(done, waited_s)
        return self.coarser

    def _judge(self, image_s: float, done: int) -> None:
        """Take a halving back that did not help; it is tried again later, because something else may have disturbed."""
        assert self._finer_s is not None
        if image_s * _HELPED > self._finer_s:
            self._decode_finer("images came no faster for it, so decoding is not what is slow")
            self._not_before = done + _WINDOW_IMAGES * 2**self._vain
            self._vain += 1
        self._finer_s = None

    def _decode_finer(self, why: str) -> None:
        self.coarser -= 1
        how = f"{2**self.coarser} times coarser" if self.coarser else "as the models know it"
        self._say(f"{why}: JPEG 2000 is decoded {how} again")

    def _give_up(self, waiting: float, image_s: float, done: int) -> str | None:
        """What is given up, in words: first where the greater part of the time goes, then where it still helps."""
        if waiting > 0.5:
            return self._decode_coarser(waiting, image_s, done) or self._do_less(1 - waiting, done)
        return self._do_less(1 - waiting, done) or self._decode_coarser(waiting, image_s, done)

    def _decode_coarser(self, share: float, image_s: float, done: int) -> str | None:
        if share <= _WORTH or self.coarser == self._most or done < self._not_before:
            return None
        self.coarser += 1
        self.coarsest, self._finer_s = max(self.coarsest, self.coarser), image_s
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
