"""The command line: exit codes, suggestions, JSON on stdout and talk on stderr."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rsna_lab.cli import build_parser, main

ROOT = Path(__file__).parent.parent
VERBS = [
    "check",
    "phantom",
    "prepare",
    "folds",
    "train",
    "infer",
    "explain",
    "tune",
    "blend",
    "score",
    "report",
    "leaderboard",
    "compare",
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepar", "a", "b"], "Did you mean 'prepare'"),
        (["prepare", "a", "b", "--limi", "3"], "Did you mean '--limit'"),
        (["prepare", "a", "b", "--set", "image.heigth=3"], "Did you mean 'image.height'"),
        (["prepare", "a", "b", "--set", "train.epochs=3"], "reads only the sections image, decode, data"),
        (["prepare", "a", "b", "--preset", "smok"], "Did you mean 'smoke'"),
        (["train", "a", "b", "--time-limit", "soon"], "expected a duration"),
        (["infer", "a", "b", "--bundle", "c", "--set", "image.height=3"], "reads only the sections decode, infer"),
        (["phantom", "a", "--patients", "many"], "invalid int value"),
        (["report", "a.csv"], "--out"),
        (["report", "a.csv", "--out", "b", "--threshold", "2"], "expected a number from 0 to 1"),
        (["score", "a.csv", "--pictures", "b"], "unrecognized arguments: --pictures"),
        (["explain", "a", "b", "--bundle", "c", "--images", "1", "--top", "3"], "not allowed with"),
        ([], "VERB"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_to_do(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Error: ")
    assert message in captured.err


def test_what_the_person_can_mend_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scores.csv").write_text("prediction_id,scor,cancer\n1_L,0.5,1\n")
    assert main(["score", str(tmp_path / "scores.csv")]) == 1
    assert "Did you mean" in capsys.readouterr().err


def test_a_refused_command_leaves_nothing_behind(tmp_path: Path) -> None:
    assert main(["prepare", str(tmp_path / "nowhere"), str(tmp_path / "prepared")]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_should_be_is_an_error_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report").write_text("a file")
    (tmp_path / "oof.csv").write_text("prediction_id,score,cancer\n1_L,0.1,0\n2_L,0.2,0\n3_L,0.8,1\n4_L,0.9,1\n")
    assert main(["score", str(tmp_path / "oof.csv"), "--out", str(tmp_path / "report")]) == 1
    assert str(tmp_path / "report") in capsys.readouterr().err


def test_results_are_json_on_stdout_and_talk_is_on_stderr(tmp_path: Path) -> None:
    rows = "".join(f"{n}_L,{n / 40},{int(n > 30)}\n" for n in range(40))
    (tmp_path / "oof.csv").write_text("prediction_id,score,cancer\n" + rows)
    command = [sys.executable, "-m", "rsna_kit", "score", tmp_path / "oof.csv", "--out", tmp_path / "report"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["files"][str(tmp_path / "oof.csv")]["metrics"]["roc_auc"]["value"] == 1.0
    assert re.search(r"roc_auc +1\.000 +\[1\.000, 1\.000\]", done.stderr)
    assert json.loads((tmp_path / "report" / "scores.json").read_text())["threshold"] == result["threshold"]
    assert not (tmp_path / "report" / "report.html").exists()


def test_a_report_is_the_scores_and_their_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"{n}_L,{n / 40},{int(n > 30)}\n" for n in range(40))
    (tmp_path / "oof.csv").write_text("prediction_id,score,cancer\n" + rows)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "report")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result.pop("report") == str(tmp_path / "report" / "report.html")
    assert (tmp_path / "report" / "report.html").read_text().startswith("<!doctype html>")
    assert json.loads((tmp_path / "report" / "scores.json").read_text()) == result
    assert main(["score", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == result


def test_the_threshold_of_the_first_file_serves_the_others(tmp_path: Path) -> None:
    (tmp_path / "oof.csv").write_text("prediction_id,score,cancer\n1_L,0.1,0\n2_L,0.2,0\n3_L,0.8,1\n4_L,0.9,1\n")
    (tmp_path / "test.csv").write_text("prediction_id,score\n5_L,0.05\n6_L,0.95\n7_L,0.01\n")
    (tmp_path / "truth.csv").write_text("prediction_id,patient_id,cancer\n5_L,5,0\n6_L,6,1\n7_L,7,0\n")
    out = tmp_path / "report"
    files = [str(tmp_path / "oof.csv"), str(tmp_path / "test.csv")]
    assert main(["score", *files, "--truth", str(tmp_path / "truth.csv"), "--out", str(out)]) == 0
    result = json.loads((out / "scores.json").read_text())
    assert 0.1 < result["threshold"] < 0.8
    assert {f["threshold"]["value"] for f in result["files"].values()} == {result["threshold"]}
    assert result["files"][files[1]]["confusion"] == {"tp": 1, "fp": 0, "fn": 0, "tn": 2}


def test_a_truth_that_no_file_would_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "oof.csv").write_text("prediction_id,patient_id,cancer,score\n5_L,5,0,0.2\n6_L,6,1,0.9\n")
    (tmp_path / "truth.csv").write_text("prediction_id,patient_id,cancer\n5_L,5,1\n6_L,6,0\n")
    assert main(["score", str(tmp_path / "oof.csv"), "--truth", str(tmp_path / "truth.csv")]) == 2
    assert "labels of its own" in capsys.readouterr().err


def test_a_submission_is_scored_against_the_truth(tmp_path: Path) -> None:
    (tmp_path / "submission.csv").write_text("prediction_id,cancer\n5_L,0\n6_L,1\n7_L,1\n")
    (tmp_path / "truth.csv").write_text("prediction_id,patient_id,cancer\n5_L,5,0\n6_L,6,1\n7_L,7,0\n")
    files = [str(tmp_path / name) for name in ("submission.csv", "truth.csv")]
    assert main(["score", files[0], "--truth", files[1], "--threshold", "0.5", "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "scores.json").read_text())["files"][files[0]]
    assert summary["metrics"]["pf1"]["value"] == pytest.approx(2 / 3)


def test_a_file_without_labels_asks_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scores.csv").write_text("prediction_id,score\n1_L,0.5\n")
    assert main(["score", str(tmp_path / "scores.csv")]) == 2
    assert "--truth" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    example = re.search(rf"example:\n  rsna-kit ({verb} .*)", capsys.readouterr().out)
    assert example
    build_parser().parse_args(example.group(1).split())


def test_commands_in_the_readme_are_understood() -> None:
    """Every `rsna-kit VERB …` line parses, so that no option there has been renamed."""
    lines = re.findall(r"^rsna-kit (\w.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    for line in lines:
        build_parser().parse_args(line.split("#")[0].split())
    assert {line.split()[0] for line in lines} == set(VERBS)


def test_check_describes_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    result = json.loads(capsys.readouterr().out)
    (them,) = (there for name, there in result["decoders"].items() if name.startswith("1.2.840.10008.1.2.4.70 JPEG"))
    assert them["imagecodecs"] == "available"
