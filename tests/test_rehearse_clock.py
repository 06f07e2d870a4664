"""Simulated time, and the hidden run in it."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rsna_lab.kaggle.clock.costs import HOUR, KINDS, SCENARIOS, Scenario
from rsna_lab.kaggle.clock.simulation import Result, simulate
from rsna_lab.kaggle.clock.virtual_time import Condition, DeadlockError, Line, Resource, Strand, World

ROOT = Path(__file__).parent.parent
FILES, LIMIT_S = 640, 0.17 * HOUR  # a fiftieth of both: the same pace
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


def test_sleepers_wake_in_the_order_of_their_clocks() -> None:
    told = list[tuple[str, float]]()
    with World() as world:

        def sleeper(name: str, seconds: float) -> None:
            world.sleep(seconds)
            told.append((name, world.now))

        strands = [Strand(world, sleeper, args) for args in (("a", 30.0), ("b", 10.0), ("c", 20.0))]
        for strand in strands:
            strand.start()
        strands[0].join(15.0)
        assert told == [("b", 10.0)]
        assert world.now == 15.0
        for strand in strands:
            strand.join()
    assert told == [("b", 10.0), ("c", 20.0), ("a", 30.0)]


def test_cores_are_shared_evenly_and_a_job_takes_no_more_than_its_threads() -> None:
    """Three jobs of 10 core-seconds on two cores: 2/3 of a core each; the last one alone has one, not two."""
    ends = dict[str, float]()
    with World() as world:
        cores = Resource(world, 2.0, 1.0)

        def job(name: str, seconds: float) -> None:
            cores.use(seconds)
            ends[name] = world.now

        strands = [Strand(world, job, args) for args in (("a", 10.0), ("b", 10.0), ("c", 12.0))]
        for strand in strands:
            strand.start()
        for strand in strands:
            strand.join()
    assert ends == {"a": pytest.approx(15), "b": pytest.approx(15), "c": pytest.approx(17)}


def test_a_resource_that_stands_still_goes_on_where_it_was() -> None:
    with World() as world:
        disk = Resource(world, 100.0)
        reader = Strand(world, disk.use, (1000.0,))
        reader.start()
        world.sleep(4.0)
        disk.set_capacity(0.0)
        world.sleep(60.0)
        disk.set_capacity(50.0)
        reader.join()
        assert world.now == pytest.approx(4 + 60 + 12)


def test_conditions_and_queues_work_as_threading_has_them() -> None:
    got = list[object]()
    with World() as world:
        line, door = Line(world), Condition(world)

        def consumer() -> None:
            got.append(line.get())
            with pytest.raises(queue.Empty):
                line.get(timeout=5.0)
            got.append(world.now)
            with door:
                door.wait(1.0)
            got.append(world.now)
            with door:
                door.wait()
            got.append(world.now)

        strand = Strand(world, consumer)
        strand.start()
        world.sleep(2.0)
        line.put("first")
        world.sleep(10.0)
        with door:
            door.notify_all()
        strand.join()
    assert got == ["first", 7.0, 8.0, 12.0]


def test_a_deadlock_and_an_error_in_a_thread_end_the_simulation() -> None:
    with World() as world, pytest.raises(DeadlockError):
        world.park()

    def fail() -> None:
        world.sleep(1.0)
        raise KeyError("mine")

    with World() as world:
        Strand(world, fail).start()
        with pytest.raises(KeyError, match="mine"):
            world.sleep(5.0)


def test_a_world_that_ends_leaves_no_thread_behind() -> None:
    with World() as world:
        strands = [Strand(world, world.park) for _ in range(3)]
        for strand in strands:
            strand.start()
        world.sleep(1.0)
    assert not any(strand.thread is not None and strand.thread.is_alive() for strand in strands)


def run(scenario: Scenario, folder: Path, files: int = FILES, limit_s: float = LIMIT_S) -> Result:
    return simulate(
        replace(scenario, costs=replace(scenario.costs, start_s=10, trace_s=5, proof_s=5)), folder, files, limit_s
    )


def test_the_mix_of_files_is_what_was_measured() -> None:
    """162 ms a file at 1536x768 and 1.44 core-hours for 32,000: docs/results.csv."""
    assert sum(kind.share for kind in KINDS) == pytest.approx(1, abs=0.001)
    seconds = sum(kind.share * kind.cpu_s for kind in KINDS)
    assert seconds * 32_000 / HOUR == pytest.approx(1.44, abs=0.02)


def test_a_normal_run_sheds_nothing_and_takes_what_the_forward_passes_take(tmp_path: Path) -> None:
    result = run(BY_NAME["normal"], tmp_path)
    assert (result.scored, result.failed, result.shed, result.error, result.file) == (FILES, 0, [], "", "valid")
    passes = 4 * 0.06 * FILES
    assert passes < result.end_s < 1.3 * passes
    assert result.progress[-1][1] == FILES


def test_the_same_run_is_the_same_twice(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    slow = replace(BY_NAME["slow disk, 8 MB/s"], costs=replace(BY_NAME["slow disk, 8 MB/s"].costs, disk=6e6))
    assert run(slow, tmp_path / "a") == run(slow, tmp_path / "b")


def test_an_overloaded_ensemble_sheds_tta_then_members_and_ends_in_time(tmp_path: Path) -> None:
    result = run(Scenario("overloaded", members=12, tta=True), tmp_path)
    assert result.shed[0][1] == "TTA is left out from here on"
    assert all("member" in what for _, what in result.shed[1:])
    assert result.scored == FILES
    assert result.end_s < LIMIT_S + 10


def test_a_run_that_cannot_end_is_cut_off_with_a_valid_file(tmp_path: Path) -> None:
    """A CPU alone: everything is shed, what is left stands at the prior."""
    alone = BY_NAME["CPU only"]
    result = run(replace(alone, costs=replace(alone.costs, forward_s=1.6)), tmp_path)
    assert [what.split()[0] for _, what in result.shed] == ["member3", "member2"]  # 64 images each time
    assert 0 < result.scored < FILES
    assert 0 < result.prior < 1
    assert result.file == "valid"
    assert result.end_s < LIMIT_S + 10


def test_one_slow_core_is_met_with_less_detail(tmp_path: Path) -> None:
    core = BY_NAME["one slow core"]
    result = run(replace(core, costs=replace(core.costs, slower=12.0)), tmp_path)
    assert "JPEG 2000 is decoded 2 times coarser from here on" in [what for _, what in result.shed]
    assert result.file == "valid"


def test_a_stall_costs_the_files_that_were_being_read_and_no_more(tmp_path: Path) -> None:
    """Each of four threads gives up on a file after 150 s: in 400 s, twice. They read both images of a breast."""
    result = run(replace(BY_NAME["normal"], stall=(60.0, 400.0)), tmp_path, limit_s=HOUR)
    assert result.failed == 8
    assert result.scored == FILES - 8
    assert result.prior == pytest.approx(4 / 320)
    assert result.end_s < run_end_without_stall(tmp_path / "again") + 400


def run_end_without_stall(folder: Path) -> float:
    folder.mkdir()
    return run(BY_NAME["normal"], folder, limit_s=HOUR).end_s


def test_a_decoding_gpu_that_is_lost_is_left_alone(tmp_path: Path) -> None:
    result = run(replace(BY_NAME["two GPUs decode, one is lost"], lost_decoder=60.0), tmp_path)
    assert (result.scored, result.failed, result.file) == (FILES, 0, "valid")
    assert "gpu1 is not used any more: RuntimeError: failed on 3" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("name", ["the GPU that scores is lost", "the only GPU is lost"])
def test_when_the_gpu_that_scores_is_lost_a_new_process_goes_on(tmp_path: Path, name: str) -> None:
    result = run(replace(BY_NAME[name], lost_scorer=90.0), tmp_path, limit_s=HOUR)
    assert (result.error, result.file) == ("", "valid")
    assert result.shed[0][1] == "a new process"
    assert "attempt 1 ended: RuntimeError: CUDA_ERROR_LAUNCH_FAILED" in (tmp_path / "log.txt").read_text()
    assert result.scored == FILES


def test_the_door_prints_a_table_and_draws(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts/rehearse-clock", "--out", tmp_path, "--files", 320, "--limit", "10m",
               "--scenario", "normal", "CPU only", "--gpu-seconds", "0.01"]  # fmt: skip
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    header, _, normal, cpu = done.stdout.splitlines()
    assert header.startswith("| scenario | ends |")
    assert normal.startswith("| normal | ")
    assert "320 of 320 | 0 | 0.0% | nothing | valid |" in normal
    assert cpu.startswith("| CPU only |")
    assert len(json.loads((tmp_path / "clock.json").read_text())) == 2
    assert (tmp_path / "clock.png").stat().st_size > 10_000
    assert (tmp_path / "CPU only.log").is_file()
    refused = subprocess.run([*map(str, command[:2]), "--scenario", "normall"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "Did you mean 'normal'?" in refused.stderr
