"""The clock against the images: when detail is given up, and when it is not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rsna_kit.imaging.pace import MOST_COARSER, Pace
from rsna_kit.runtime.clock import Clock


class Hands(Clock):
    """A clock that is moved by hand."""

    def __init__(self, limit_s: float | None) -> None:
        super().__init__(limit_s)
        self.now = 0.0

    def elapsed_s(self) -> float:
        return self.now


def drive(
    image_s: Callable[[int, float], float],
    limit_s: float | None,
    waiting: float = 0.9,
    total: int = 20_000,
    batch: int = 16,
    lighten: Callable[[], str | None] = lambda: None,
) -> tuple[Pace, list[str], float]:
    """A run to its end or to its limit.

    Args:
        image_s: (halvings given up, time) → seconds that an image takes.
        waiting: share of the time that is spent waiting for images.

    Returns:
        The pace, what was said, when it ended.
    """
    clock, said = Hands(limit_s), list[str]()
    pace = Pace(clock, total, 20, said.append, lighten=lighten)
    for done in range(batch, total + 1, batch):
        clock.now += batch * image_s(pace.coarser, clock.now)
        pace.update(done, waiting * clock.now)
        if limit_s is not None and clock.now > limit_s:
            break
    return pace, [line.rpartition(": ")[2] for line in said], clock.now


COARSER = [f"JPEG 2000 is decoded {times} times coarser from here on" for times in (2, 4)]
FINER = ["JPEG 2000 is decoded 2 times coarser again", "JPEG 2000 is decoded as the models know it again"]


def test_a_run_in_time_gives_up_nothing() -> None:
    assert drive(lambda coarser, now: 1, limit_s=20_500)[1] == []
    assert drive(lambda coarser, now: 100, limit_s=None)[1] == []


def test_a_run_out_of_time_says_why_and_becomes_coarser_as_often_as_it_helps() -> None:
    clock, said = Hands(500), list[str]()
    pace = Pace(clock, 1000, 20, said.append)
    clock.now = 100
    pace.update(100, 90)
    assert said == [
        "900 images at this pace need 15:00, 6:20 are left: JPEG 2000 is decoded 2 times coarser from here on"
    ]
    pace, said, end = drive(lambda coarser, now: 0.4**coarser, limit_s=8_200)
    assert (said[:1], pace.coarsest) == (COARSER[:1], 1)
    assert end < 8_200
    pace, said, end = drive(lambda coarser, now: 0.4**coarser, limit_s=4_500)
    assert (said[:2], pace.coarsest) == (COARSER, 2)
    assert end < 4_500


def test_what_does_not_wait_for_images_gains_nothing_by_coarser_ones() -> None:
    assert drive(lambda coarser, now: 1, limit_s=10_000, waiting=0.1)[1] == []


def test_coarser_images_that_come_no_faster_are_finer_again() -> None:
    """A slow disk: what is decoded makes no difference, and the detail would be lost for nothing."""
    pace, said, _ = drive(lambda coarser, now: 1, limit_s=10_000)
    assert said == [COARSER[0], FINER[1]] * (len(said) // 2)
    assert 1 <= len(said) // 2 <= 3  # tries, ever further apart
    assert (pace.coarser, pace.coarsest) == (0, 1)


def test_after_a_stall_the_detail_comes_back() -> None:
    pace, said, _ = drive(lambda coarser, now: 20 if 1_000 <= now < 4_000 else 0.3, limit_s=40_000)
    assert said in ([COARSER[0], FINER[1]], [*COARSER, *FINER])
    assert pace.coarser == 0


def test_images_that_differ_are_no_shortage() -> None:
    """Four images of a woman are alike, and women differ as decoding does; a tenth of the time is to spare."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        women = rng.choice([0.5, 1.0, 2.5], 5_000, p=[0.5, 0.3, 0.2])
        times = iter(np.repeat(women, 4).reshape(-1, 16).mean(axis=1))
        assert drive(lambda coarser, now, times=times: next(times), limit_s=1.1 * 4 * women.sum() + 20)[1] == []


def shed(waiting: float, most: int = MOST_COARSER) -> tuple[list[str], int, list[str]]:
    """What is given up, look by look, by a run that cannot end in time, whose models have three things to give up."""
    clock, said, rest = Hands(500), list[str](), ["TTA", "fold1", "fold0"]
    pace = Pace(clock, 100_000, 0, said.append, most, lambda: rest.pop(0) if rest else None)
    waited_s = 0.0
    for step in range(1, 9):
        seconds = 300.0 * 0.4**pace.coarser
        clock.now, waited_s = clock.now + seconds, waited_s + waiting * seconds
        pace.update(300 * step, waited_s)
    return (
        [line.partition("are left: ")[2] for line in said],
        pace.coarser,
        [str(x["given_up"]) for x in pace.lightened],
    )


OUT = ["TTA is left out from here on", "fold1 is left out from here on", "fold0 is left out from here on"]


def test_slow_models_do_less_and_slow_decoding_becomes_coarser() -> None:
    assert shed(waiting=0.05) == (OUT, 0, ["TTA", "fold1", "fold0"])
    assert shed(waiting=0.95) == (COARSER, 2, [])


def test_models_do_less_where_coarser_pictures_are_not_to_be_had() -> None:
    assert shed(waiting=0.6, most=0)[0] == OUT
    assert shed(waiting=0.95, most=0)[0] == []
