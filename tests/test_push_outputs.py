"""What kernels leave, fetched by the real `kaggle` program: whole, checked, and never outside its folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from kaggle_site import USER
from push_world import World

NAME = f"{USER}/rsna-kit-extra"


def has_run(world: World, verdict: dict[str, object] | None = None, **files: str) -> Path:
    """A complete run of a kernel with these outputs; returns where its output comes to lie here."""
    files = files or {"submission.csv": "prediction_id,cancer\n0_L,0.5\n", "model/fold0/config.json": "{}"}
    if verdict is not None:
        files["verdict.json"] = json.dumps(verdict)
    text = (
        "import os, pathlib\n"
        "working = pathlib.Path(os.environ['RSNA_KIT_WORKING'])\n"
        f"for name, text in {files!r}.items():\n"
        "    (working / name).parent.mkdir(parents=True, exist_ok=True)\n"
        "    (working / name).write_text(text)\n"
    )
    world.has_kernel("extra", text)
    return world.project / "runs/kaggle/rsna-kit-extra/v1"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_outputs_are_fetched_whole_and_noted(world: World) -> None:
    out = has_run(world, {"ok": True, "sha256": {"a.txt": sha256("alpha")}}, **{"a.txt": "alpha", "b/c.txt": "beta"})
    result = world.push("fetch", "extra")
    assert (out / "b/c.txt").read_text() == "beta"
    assert result.value["sha256"]["a.txt"] == sha256("alpha")
    line = world.account.ledger.last("fetch", kernel=NAME)
    assert line is not None
    assert line["sha256"] == result.value["sha256"]
    before = len(world.double.arrived)
    assert "already" in world.push("fetch", "extra").talk
    assert len(world.double.arrived) == before
    (out / "a.txt").write_text("changed here")
    world.push("fetch", "extra")
    assert (out / "a.txt").read_text() == "alpha"


def test_only_some_files_can_be_fetched(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    has_run(world)
    out = world.project / "some"
    monkeypatch.chdir(world.project)
    assert world.push("fetch", "extra", "--only", r"\.csv$", "--out", "some").code == 0
    assert [path.name for path in out.rglob("*")] == ["submission.csv"]
    assert world.push("fetch", "extra", "--out", str(out)).code == 2  # nothing of the person's is replaced
    assert world.push("fetch", "extra", "--only", "(").code == 2


def test_what_was_not_fetched_stays_where_it_is(world: World) -> None:
    out = has_run(world)
    assert world.push("fetch", "extra").code == 0
    (out / "notes.md").write_text("mine")
    (out / "submission.csv").unlink()
    assert world.push("fetch", "extra", "--only", "fold0/").code == 0
    assert world.push("fetch", "extra", "--only", "csv$").code == 0
    assert files_in(out) == ["model/fold0/config.json", "notes.md", "submission.csv"]
    assert (out / "notes.md").read_text() == "mine"


def test_a_pattern_that_nothing_matches_changes_nothing(world: World) -> None:
    out = has_run(world)
    world.push("fetch", "extra")
    result = world.push("fetch", "extra", "--only", "zzz")
    assert result.code == 2
    assert "matches none of what tester/rsna-kit-extra left: model/fold0/config.json, submission.csv" in result.talk
    assert files_in(out) == ["model/fold0/config.json", "submission.csv"]
    assert len([line for line in world.account.ledger.lines() if line["kind"] == "fetch"]) == 1


def test_a_file_of_ones_own_is_not_written_over(world: World) -> None:
    out = has_run(world)
    out.mkdir(parents=True)
    (out / "submission.csv").write_text("mine")
    (out / "model").write_text("a file where a folder comes to lie")
    result = world.push("fetch", "extra", "--only", "csv$")
    assert result.code == 2
    assert "submission.csv was not fetched, and submission.csv would take its place" in result.talk
    assert "v1/model was not fetched" in world.push("fetch", "extra", "--only", "json$").talk
    assert files_in(out) == ["model", "submission.csv"]
    assert (out / "submission.csv").read_text() == "mine"


def test_the_newest_output_takes_the_place_of_the_one_before(world: World) -> None:
    """A kernel that was pushed from elsewhere has no number here: its files must not be mixed with those of another."""
    out = has_run(world).with_name("v0")
    world.account.ledger.path.unlink()
    assert world.push("fetch", "extra").code == 0
    (out / "notes.md").write_text("mine")
    world.site.kernels[NAME].versions[0].working.joinpath("submission.csv").rename(
        world.site.kernels[NAME].versions[0].working / "other.csv"
    )
    assert world.push("fetch", "extra").code == 0
    assert files_in(out) == ["model/fold0/config.json", "notes.md", "other.csv"]


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_an_error_page_in_the_place_of_a_file_is_an_error(each_world: World) -> None:
    """kaggle 2.2.4 saves the storage's 403 page as submission.csv, exit code 0."""
    out = has_run(each_world)
    each_world.traps.output_403 = {"submission.csv"}
    talk = each_world.fails("fetch", "extra")
    assert ("came an error page" in talk) or ("403" in talk)
    assert "ExpiredToken" in talk or "403" in talk
    assert not out.exists()
    each_world.traps.output_403 = set()
    assert each_world.push("fetch", "extra").code == 0


def test_a_file_that_wants_out_is_refused(each_world: World) -> None:
    """kaggle 2.2.4 joins any name to the folder; both lists of names come from the kernel."""
    victim = each_world.project / "victim.txt"
    has_run(each_world)
    each_world.traps.output_names = {"submission.csv": "../victim.txt", "model/fold0/config.json": str(victim)}
    assert "would be written outside its folder" in each_world.fails("fetch", "extra")
    assert not victim.exists()


def test_a_name_that_only_the_download_claims_is_left_out(each_world: World) -> None:
    """The list was harmless, the download is not: the program is given a pattern that such a name does not match."""
    victim = each_world.project / "victim.txt"
    has_run(each_world)
    each_world.traps.download_names = {"submission.csv": str(victim)}
    assert "submission.csv did not come" in each_world.fails("fetch", "extra")
    assert not victim.exists()


def test_a_file_that_was_cut_short_is_an_error(world: World) -> None:
    out = has_run(world)
    world.traps.truncate_output = {"submission.csv"}
    assert "submission.csv has 14 bytes here and 29 at Kaggle" in world.fails("fetch", "extra")
    assert not out.exists()
    assert list(out.parent.iterdir()) == []


def test_a_file_other_than_the_kernel_noted_is_an_error(world: World) -> None:
    out = has_run(world, {"ok": True, "sha256": {"a.txt": sha256("what was written")}}, **{"a.txt": "what came"})
    assert "a.txt is not what the kernel wrote" in world.fails("fetch", "extra")
    assert not out.exists()


def test_a_file_that_the_kernel_noted_and_nobody_lists_is_missed(world: World) -> None:
    has_run(world, {"ok": True, "sha256": {"bundles/weights": sha256("x")}}, **{"a.txt": "alpha"})
    assert "bundles/weights did not come" in world.fails("fetch", "extra")
    assert world.push("fetch", "extra", "--only", "a.txt").code == 0


def test_a_run_that_says_itself_that_it_failed_is_believed(world: World) -> None:
    has_run(world, {"ok": False, "reason": "fold 1 has no cancer"})
    assert "fold 1 has no cancer" in world.fails("fetch", "extra")


def test_more_files_than_a_page_holds_are_all_fetched(world: World) -> None:
    out = has_run(world, **{f"f{n:03}.txt": str(n) for n in range(205)})
    assert world.push("fetch", "extra").code == 0
    assert len(list(out.iterdir())) == 205
