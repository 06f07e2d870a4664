"""The clock against the images: when detail is given up, and when it is not."""

from __future__ import annotations

import pytest

from rsna_kit.imaging.pace import MOST_COARSER, Pace
from rsna_kit.runtime.clock import Clock


class Hands(Clock):
    """A clock that is moved by hand."""

    def __init__(self, limit_s: float | None) -> None:
        super().__init__(limit_s)
        self.now = 0.0

    def elapsed_s(self) -> float:
        return self.now


def run(limit_s: float | None, per_image_s: float, waiting: float, total: int = 1000, steps: int = 10) -> list[str]:
    """100 images a step at a pace, `waiting` of the time spent waiting for them; what was said."""
    clock, said = Hands(limit_s), list[str]()
    pace = Pace(clock, total, reserve_s=20, say=said.append)
    for step in range(1, steps + 1):
        clock.now = 100 * step * per_image_s
        pace.update(100 * step, waiting * clock.now)
    assert pace.coarser == len(said)
    return said


def test_a_run_in_time_gives_up_nothing() -> None:
    assert run(limit_s=1100, per_image_s=1, waiting=0.9) == []
    assert run(limit_s=None, per_image_s=100, waiting=0.9) == []


def test_a_run_out_of_time_becomes_coarser_once_for_each_look() -> None:
    said = run(limit_s=500, per_image_s=1, waiting=0.9, steps=1)
    assert said == [
        "900 images at this pace need 15:00, 6:20 are left: JPEG 2000 is decoded 2 times coarser from here on"
    ]
    assert len(run(limit_s=500, per_image_s=1, waiting=0.9)) == MOST_COARSER


def test_what_does_not_wait_for_images_gains_nothing_by_coarser_ones() -> None:
    assert run(limit_s=500, per_image_s=1, waiting=0.1) == []


@pytest.mark.parametrize(("done", "seconds"), [(63, 1000.0), (1000, 29.0)])
def test_little_evidence_is_none(done: int, seconds: float) -> None:
    clock = Hands(1.0)
    pace = Pace(clock, 10_000, 0, print)
    clock.now = seconds
    assert pace.update(done, seconds) == 0


def test_only_what_came_since_the_last_look_counts() -> None:
    """A slow start (libraries, a cold disk) must not cost detail for the rest of the run."""
    clock, said = Hands(2000), list[str]()
    pace = Pace(clock, 1000, 0, said.append)
    clock.now = 190
    pace.update(100, 190)  # 9 x 190 s = 1710 s of 1810 s left
    clock.now = 390
    assert pace.update(250, 300) == 0  # 200 s for 150 images: 1000 s of 1610 s left
    assert said == []


def shed(waiting: float, most: int = MOST_COARSER, looks: int = 8) -> tuple[list[str], int, list[str]]:
    """What is given up, look by look, by a run that cannot end in time, whose models have three things to give up."""
    clock, said, rest = Hands(500), list[str](), ["TTA", "fold1", "fold0"]
    pace = Pace(clock, 10_000, 0, said.append, most, lambda: rest.pop(0) if rest else None)
    for step in range(1, looks + 1):
        clock.now = 100.0 * step
        pace.update(100 * step, waiting * clock.now)
    return (
        [line.partition("are left: ")[2] for line in said],
        pace.coarser,
        [str(x["given_up"]) for x in pace.lightened],
    )


OUT = ["TTA is left out from here on", "fold1 is left out from here on", "fold0 is left out from here on"]
COARSER = [f"JPEG 2000 is decoded {times} times coarser from here on" for times in (2, 4)]


def test_slow_models_do_less_and_slow_decoding_becomes_coarser() -> None:
    assert shed(waiting=0.05) == (OUT, 0, ["TTA", "fold1", "fold0"])
    assert shed(waiting=0.95) == (COARSER, 2, [])


def test_what_takes_longer_is_given_up_first_and_the_other_after_it() -> None:
    assert shed(waiting=0.4)[0] == OUT + COARSER
    assert shed(waiting=0.6)[0] == COARSER + OUT


def test_models_do_less_where_coarser_pictures_are_not_to_be_had() -> None:
    assert shed(waiting=0.6, most=0)[0] == OUT
    assert shed(waiting=0.95, most=0)[0] == []


def test_it_is_recorded_when_something_was_given_up() -> None:
    clock = Hands(500)
    pace = Pace(clock, 10_000, 0, lambda line: None, 0, lambda: "TTA")
    clock.now = 100
    pace.update(100, 0)
    assert pace.lightened == [{"given_up": "TTA", "after_images": 100}]
