"""What every kernel's session begins and ends with: inputs, GPU, wheels, bundles, and a verdict whatever happens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rsna_kit.runtime.errors import MissingDependencyError, RsnaKitError, UsageError
from rsna_kit.runtime.files import sha256_file
from rsna_kit.session import kernel as sessions
from rsna_kit.session import verdict as verdicts
from rsna_kit.session.kernel import Session, run
from rsna_kit.session.verdict import PREFIX

SETTINGS = {"SET": "", "BUNDLES": "", "TIME_LIMIT": "1h", "REQUIRE_GPU": "no"}
DATASET, KERNEL = "datasets/me/rsna-weights", "notebooks/me/rsna-kit-train"
MODEL = "models/me/rsna-kit-weights/keras/bundles/3"


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of inputs of a kernel that runs here; its working folder lies beside it."""
    for name in ("input", "working"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"RSNA_KIT_{name.upper()}", str(tmp_path / name))
    monkeypatch.delenv("KAGGLE_IS_COMPETITION_RERUN", raising=False)
    monkeypatch.setattr(sessions, "gpus", lambda: [])
    return tmp_path / "input"


def put(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def put_bundle(folder: Path, **said: Any) -> Path:
    metadata = {"image_fingerprint": "f", "fold": 0, "commit": None, "sha256": {"model.weights.h5": folder.name}} | said
    put(folder / "metadata.json", json.dumps(metadata))
    return folder


def verdict_of(said: str) -> dict[str, Any]:
    last = said.splitlines()[-1]
    assert last.startswith(PREFIX)
    return json.loads(last.removeprefix(PREFIX))


# ---- the verdict


def test_a_verdict_is_the_last_line_and_a_file_with_the_hash_of_every_output(
    mounted: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    working = mounted.parent / "working"

    def work(session: Session) -> dict[str, Any]:
        put(session.working / "deep/result.csv", "1")
        return {"ok": True, "images": 3, "roc_auc": float("nan")}

    assert run("prepare", {"SET": ""}, [], work) == 0
    verdict = verdict_of(capfd.readouterr().out)
    assert (verdict["ok"], verdict["kernel"], verdict["reason"]) == (True, "prepare", "")
    assert verdict["counts"] == {"images": 3, "roc_auc": None}
    assert verdict["sha256"] == {"deep/result.csv": sha256_file(working / "deep/result.csv")}
    assert verdict == json.loads((working / "verdict.json").read_text())
    assert {"commit", "library", "image", "python", "gpus", "minutes"} <= set(verdict)


def fail(session: Session) -> dict[str, Any]:
    raise ValueError("cannot fetch with planted-0123456789")


ENDS: list[tuple[Callable[[Session], Mapping[str, Any]], str, bool, int]] = [
    (fail, "ValueError: cannot fetch with <KAGGLE_USER_SECRETS_TOKEN>", True, 1),
    (lambda session: {"folder": session.prepared()}, "Attach the kernel rsna-kit-prepare", False, 1),
    (lambda session: {"ok": False, "reason": "two files broken", "failed": 2}, "two files broken", False, 0),
    (lambda session: {"ok": False, "images": 10, "failed": 3}, "3 of 10 images could not be used", False, 0),
]


@pytest.mark.parametrize(("work", "reason", "traceback", "rerun"), ENDS)
def test_a_run_that_fails_says_why_and_no_secret(
    mounted: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, work, reason, traceback, rerun
) -> None:
    """A refusal is one sentence and no traceback; nobody can start the scoring run again, so it stands."""
    monkeypatch.setenv("KAGGLE_USER_SECRETS_TOKEN", "planted-0123456789")
    assert run("train", SETTINGS, [], work) == 1
    said = capfd.readouterr()
    file = (mounted.parent / "working/verdict.json").read_text()
    assert verdict_of(said.out) == json.loads(file)
    assert verdict_of(said.out)["ok"] is False
    assert reason in verdict_of(said.out)["reason"]
    assert ("Traceback" in said.err) is traceback
    assert traceback or said.err.startswith("Error: ")
    assert "planted" not in said.out + said.err + file
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    assert run("train", SETTINGS, [], work) == rerun


def test_with_many_files_the_line_has_the_hash_of_the_file_that_has_them_all(
    mounted: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "_MOST_FILES", 2)

    def work(session: Session) -> dict[str, Any]:
        for number in range(3):
            put(session.working / f"{number}.png")
        return {}

    run("prepare", {"SET": ""}, [], work)
    file = mounted.parent / "working/verdict.json"
    assert verdict_of(capfd.readouterr().out)["sha256"] == {"verdict.json": sha256_file(file)}
    assert set(json.loads(file.read_text())["sha256"]) == {"0.png", "1.png", "2.png"}


def test_settings_come_from_the_source_and_ours_of_the_environment_win(
    mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"PRESET": "smoke", "SET": "train.epochs=3", "TIME_LIMIT": "1h"}
    assert Session("train", settings).config().train.epochs == 3
    monkeypatch.setenv("RSNA_KIT_SET", "train.epochs=5")
    assert Session("train", settings).config().train.epochs == 5
    assert 3590 < Session("train", settings).clock.remaining_s() <= 3600
    with pytest.raises(UsageError, match="time limit: got 'soon'"):
        assert Session("train", settings | {"TIME_LIMIT": "soon"}).clock


# ---- what must be there


def test_a_module_that_nothing_brings_is_named_with_what_to_attach(mounted: Path) -> None:
    put(mounted / "datasets/me/other/a.txt")
    with pytest.raises(MissingDependencyError, match=r"no_such_module: not installed.*\n.*dataset me/other"):
        Session("infer", SETTINGS).open(["no_such_module"])


def test_a_missing_decoder_asks_for_the_wheels(mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "check_surroundings", lambda needs: dict.fromkeys(needs, "not installed"))
    with pytest.raises(MissingDependencyError, match=r"dicomsdl: not installed\. Attach the dataset rsna-wheels"):
        Session("infer", SETTINGS).open(["dicomsdl"])


def test_an_upload_that_lost_a_file_is_found_in_the_first_minute(mounted: Path) -> None:
    from rsna_kit.session.contents import write_contents

    put(mounted / "datasets/me/rsna-weights/fold0/model.weights.h5", "weights")
    write_contents(mounted / "datasets/me/rsna-weights", {}, ["fold0/model.weights.h5"])
    Session("infer", SETTINGS).open([])
    (mounted / "datasets/me/rsna-weights/fold0/model.weights.h5").unlink()
    with pytest.raises(RsnaKitError, match=r"1 \(fold0/model\.weights\.h5\) of 1 files missing"):
        Session("infer", SETTINGS).open([])


def test_prepared_folders_are_found_and_those_of_other_mammograms_told_apart(mounted: Path) -> None:
    with pytest.raises(UsageError, match=r"got none\. Attach the kernel rsna-kit-prepare"):
        Session("train", SETTINGS).prepared()
    first = put(mounted / "notebooks/me/prepare/prepared/manifest.json").parent
    assert Session("train", SETTINGS).prepared() == ([first], [])
    second = put(mounted / "notebooks/me/prepare-2/prepared/manifest.json").parent
    other = put(mounted / "datasets/me/films/manifest.json").parent
    assert Session("train", SETTINGS).prepared() == ([other, first, second], [])
    for name in ("me/films", "datasets/me/films"):
        assert Session("train", {**SETTINGS, "EXTRA": name}).prepared() == ([first, second], [other])
    with pytest.raises(UsageError, match="EXTRA: me/film holds no prepared folder"):
        Session("train", {**SETTINGS, "EXTRA": "me/film"}).prepared()


# ---- GPU


def test_a_session_without_the_gpu_it_needs_ends_at_once(mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def require(setting: str) -> None:
        Session("train", SETTINGS | {"REQUIRE_GPU": setting}).require_gpu()

    require("no")
    require("auto")  # this machine has no image of Kaggle's
    with pytest.raises(RsnaKitError, match="no GPU in this session"):
        require("yes")
    with pytest.raises(UsageError, match="expected yes, no or auto"):
        require("maybe")
    monkeypatch.setattr(sessions, "kaggle_image", lambda: "built today")
    with pytest.raises(RsnaKitError, match="no GPU in this session"):
        require("auto")
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    require("auto")  # nobody can start the scoring run again


def test_the_first_lines_say_what_the_session_is(
    mounted: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is called a wheels dataset is installed from, and nothing else: any may have a requirements.txt."""
    put(mounted / "datasets/me/other/requirements.txt", "evil==1")
    put(mounted / "datasets/me/rsna-wheels/requirements.txt", f"numpy==1.0 --hash=sha256:{'0' * 64}\n")
    monkeypatch.setenv("TF_XLA_FLAGS", "--auto_jit=2")
    Session("infer", SETTINGS).open([])
    said = capfd.readouterr().out
    assert "NO GPU" in "\n".join(said.splitlines()[:4])
    assert "TF_XLA_FLAGS='--auto_jit=2'" in said
    assert said.count("\nwheels ") == 1
    assert "nothing new in 0.0 s; the image's own stay: numpy 2" in said


# ---- bundles


OLD_MODEL = "rsna-kit-weights/keras/bundles/3"
PLACES = {"new": (MODEL, KERNEL, DATASET), "old": (OLD_MODEL, "rsna-kit-train", "rsna-weights")}


@pytest.mark.parametrize("layout", PLACES)
def test_bundles_come_from_the_model_then_the_kernel_then_the_dataset(
    mounted: Path, capfd: pytest.CaptureFixture[str], layout: str
) -> None:
    model, kernel, dataset = (mounted / place for place in PLACES[layout])
    put_bundle(dataset / "fold0")
    assert Session("infer", SETTINGS).bundles() == [dataset]
    put_bundle(kernel / "model/bundles/fold0")
    put(kernel / "verdict.json", "{}")
    assert Session("infer", SETTINGS).bundles() == [kernel]
    put_bundle(model / "fold0")
    session = Session("infer", SETTINGS)
    assert session.bundles() == [model]
    said = capfd.readouterr().out
    assert "bundles    from the Kaggle Model" in said
    assert "not used: those of the dataset" in said
    assert "not used: those of the output of the kernel" in said
    assert list(session.facts["bundles"]["sha256"]) == [f"{PLACES[layout][0]}/fold0"]


def test_two_sources_of_a_kind_are_refused_until_they_are_named(mounted: Path) -> None:
    for name in ("a", "b"):
        put_bundle(mounted / f"notebooks/me/train-{name}/model/bundles/fold{name}")
    with pytest.raises(UsageError, match=r"bundles in several sources: me/train-a, me/train-b\. .*BUNDLES"):
        Session("infer", SETTINGS).bundles()
    both = Session("infer", SETTINGS | {"BUNDLES": "me/train-a notebooks/me/train-b"})
    assert both.bundles() == [mounted / "notebooks/me/train-a", mounted / "notebooks/me/train-b"]
    one = Session("infer", SETTINGS | {"BUNDLES": "notebooks/me/train-b/model/bundles/foldb"})
    assert one.bundles() == [mounted / "notebooks/me/train-b/model/bundles/foldb"]
    with pytest.raises(UsageError, match="BUNDLES: me/other holds no bundle"):
        Session("infer", SETTINGS | {"BUNDLES": "me/other"}).bundles()


def test_no_bundle_says_what_is_attached_and_what_to_attach(mounted: Path) -> None:
    preset = "keras/efficientnetv2/keras/b0/2"  # of Keras: its files are called as ours
    put(mounted / "models" / preset / "metadata.json", '{"keras_version": "3"}')
    put(mounted / "models" / preset / "model.weights.h5")
    with pytest.raises(UsageError, match=rf"rsna-kit-train \(kernel_sources\)(.|\n)*model {preset}"):
        Session("infer", SETTINGS).bundles()


def test_a_bundle_of_another_commit_is_said(
    mounted: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "commit", lambda: "1" * 40)
    put_bundle(mounted / DATASET / "fold0", commit="1" * 40)
    put_bundle(mounted / DATASET / "fold1", commit="2" * 40)
    session = Session("infer", SETTINGS)
    session.open([])
    session.bundles()
    lines = {line.split(":")[0].strip(): line for line in capfd.readouterr().out.splitlines() if "weights fold" in line}
    assert "another commit" not in lines[f"{DATASET}/fold0"]
    assert "made by the library of another commit, 2222" in lines[f"{DATASET}/fold1"]


def test_a_library_whose_files_were_exchanged_is_not_run(mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rsna_kit.session.contents import write_contents

    library = mounted / "datasets/me/rsna-kit"
    put(library / "rsna_kit/__init__.py", "a")
    write_contents(library, {}, ["rsna_kit/__init__.py"])
    monkeypatch.setattr(sessions.rsna_kit, "__file__", str(library / "rsna_kit/__init__.py"))
    session = Session("infer", SETTINGS)
    session.open([])
    assert len(session.facts["library"]) == 64
    put(library / "rsna_kit/__init__.py", "b")
    with pytest.raises(RsnaKitError, match=r"rsna_kit/__init__\.py\) damaged or exchanged"):
        Session("infer", SETTINGS).open([])
