"""What kernels leave: whole, compared with their verdict, and never outside its folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from kaggle_site import USER, Kernel, Refused, Session
from push_world import World

NAME = f"{USER}/rsna-kit-extra"
METADATA = {"slug": f"{USER}/elsewhere", "language": "python", "kernelType": "script"}


def has_run(world: World, verdict: str | dict[str, object] | None = None, **files: str) -> Path:
    """A complete run of a kernel with these outputs and a verdict; returns where its output comes to lie here."""
    files = files or {"submission.csv": "prediction_id,cancer\n0_L,0.5\n", "model/fold0/config.json": "{}"}
    if verdict is None:
        verdict = {"ok": True, "sha256": {name: sha256(text) for name, text in files.items()}}
    if verdict:
        files["verdict.json"] = verdict if isinstance(verdict, str) else json.dumps(verdict)
    text = (
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
    line = world.ledger.last("fetch", kernel=NAME)
    assert line["sha256"] == result.value["sha256"]
    before = len(world.client.seen)
    assert "already" in world.push("fetch", "extra").talk
    assert len(world.client.seen) == before
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
    assert files_in(out) == ["model/fold0/config.json", "notes.md", "submission.csv", "verdict.json"]
    assert (out / "notes.md").read_text() == "mine"


def test_a_pattern_that_nothing_matches_changes_nothing(world: World) -> None:
    out = has_run(world)
    world.push("fetch", "extra")
    result = world.push("fetch", "extra", "--only", "zzz")
    assert result.code == 2
    assert (
        "matches none of what tester/rsna-kit-extra left: model/fold0/config.json, submission.csv, verdict.json"
        in result.talk
    )
    assert files_in(out) == ["model/fold0/config.json", "submission.csv", "verdict.json"]
    assert len([line for line in world.ledger.lines() if line["kind"] == "fetch"]) == 1


def test_a_kernel_that_was_pushed_from_elsewhere_is_fetched_by_the_number_that_kaggle_says(world: World) -> None:
    has_run(world, "")
    working = world.site.kernels.pop(NAME).versions[0].working
    old = Session("", {}, {}, working.parent)
    world.site.kernels[f"{USER}/elsewhere"] = Kernel("x", [old, Session("", METADATA, {}, working)])
    assert "has no verdict.json" in world.does("fetch", f"{USER}/elsewhere").talk
    assert files_in(world.project / "runs/kaggle/elsewhere/v2") == ["model/fold0/config.json", "submission.csv"]


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_link_that_has_expired_is_an_error_and_a_line_that_breaks_is_taken_up(world: World) -> None:
    out = has_run(world)
    world.traps.refuse["get"] = [Refused(403, "The provided token has expired.")]
    talk = world.fails("fetch", "extra")
    assert "token has expired" in talk
    assert "Run the same command again" in talk
    assert not out.exists()
    world.traps.refuse["get"] = [Refused(0, "reset", "network")]
    assert "A file did not come; try 2 of 5 in 0 s (reset)" in world.does("fetch", "extra").talk
    assert len(files_in(out)) == 3


def test_a_file_that_wants_out_is_refused(world: World) -> None:
    victim = world.project / "victim.txt"
    has_run(world)
    for name in ("../victim.txt", str(victim), "a/../../victim.txt", "a\\b"):
        world.traps.output_names = {"submission.csv": name}
        assert "would be written outside its folder" in world.fails("fetch", "extra")
    assert not victim.exists()


@pytest.mark.parametrize("verdict", ["{'ok': true}", "", "[]", '{"ok": true}', '{"ok": "yes", "sha256": {}}', "\0" * 9])
def test_without_a_whole_verdict_nothing_is_taken(world: World, verdict: str) -> None:
    out = has_run(world, verdict)
    for words in (("fetch", "extra"), ("fetch", "extra", "--only", "csv$"), ("submit", "extra")):
        talk = world.fails(*words)
        if words[0] == "fetch":
            assert "left no verdict.json that can be read, so nothing of it is taken" in talk
            assert "--again" in talk
    assert not out.exists()
    assert world.site.submissions == []


def test_a_file_that_was_cut_short_or_exchanged_is_an_error(world: World) -> None:
    out = has_run(world)
    world.traps.truncate_output = {"submission.csv"}
    for words in (["fetch", "extra"], ["fetch", "extra", "--only", "csv$"]):
        assert "submission.csv is not what the kernel wrote" in world.fails(*words)
    assert not out.exists()
    assert list(out.parent.iterdir()) == []


def test_a_file_that_the_kernel_noted_and_nobody_lists_is_missed(world: World) -> None:
    has_run(world, {"ok": True, "sha256": {"bundles/weights": sha256("x")}}, **{"a.txt": "alpha"})
    assert "bundles/weights did not come" in world.fails("fetch", "extra")
    assert world.push("fetch", "extra", "--only", "a.txt").code == 0


def test_a_run_that_says_itself_that_it_failed_is_believed(world: World) -> None:
    has_run(world, {"ok": False, "reason": "fold 1 has no cancer", "sha256": {}})
    talk = world.fails("fetch", "extra")
    assert "fold 1 has no cancer" in talk
    assert "--again" in talk


def test_more_files_than_a_page_holds_are_all_fetched(world: World) -> None:
    out = has_run(world, **{f"f{n:03}.txt": str(n) for n in range(205)})
    assert world.push("fetch", "extra").code == 0
    assert len(list(out.iterdir())) == 206
