"""scripts/rehearse: every trap as a tiny kernel that falls into it, in the sandbox, and what Kaggle would say."""

from __future__ import annotations

import ast
import contextlib
import json
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from waiting import wait_until

from rsna_kit.runtime.errors import UsageError
from rsna_lab.kaggle.rehearse.sandbox import Cell, open_jail

ROOT = Path(__file__).parent.parent
SLUG = "rsna-breast-cancer-detection"
# What a kernel that submits begins with: both mount layouts, and a valid file first.
START = f"""
import os, shutil, sys
from pathlib import Path
inputs = [Path("/kaggle/input/competitions/{SLUG}"), Path("/kaggle/input/{SLUG}")]
data = next(folder for folder in inputs if folder.is_dir())
lines = (data / "sample_submission.csv").read_text().splitlines(True)
shutil.copyfile(data / "sample_submission.csv", "submission.csv")
"""


ON_OFF = {"is_private": True, "enable_gpu": False, "enable_tpu": False, "enable_internet": False}
NAMED = {"id": "OWNER/tiny-kernel", "title": "tiny-kernel", "code_file": "tiny.py", "competition_sources": [SLUG]}
DESCRIBED = {**NAMED, **ON_OFF, "language": "python", "kernel_type": "script"}


def processes() -> str:
    """Command lines of everything that runs here."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return "\n".join(lines)


class RefusedError(Exception):
    """Exit code 2, and what was said."""


def why_no_sandbox() -> str:
    """Why no sandbox works here, "" where one does."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "script.py").touch()
        jail = open_jail(Cell({}, folder / "script.py", folder, folder, {}))
        return "" if jail.name else str(jail.unchecked)


WHY_NOT = why_no_sandbox()
sandboxed = pytest.mark.skipif(WHY_NOT != "", reason=f"no sandbox works here: {WHY_NOT}")


@pytest.fixture(scope="session")
def competition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A visible test of two breasts, and a hidden one of five with its truth; images are a few bytes."""
    folder = tmp_path_factory.mktemp("rehearse") / "competition"
    for place, women in ((folder, 1), (folder / "hidden", 3)):
        breasts = [(9 + woman, side) for woman in range(women) for side in "LR" if (woman, side) != (2, "R")]
        views = [(*breast, view) for breast in breasts for view in ("CC", "MLO")]
        rows = [
            {"patient_id": str(woman), "image_id": str(100 + number), "laterality": side, "view": view}
            for number, (woman, side, view) in enumerate(views)
        ]
        for row in rows:
            image = place / "test_images" / row["patient_id"] / f"{row['image_id']}.dcm"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(bytes(128) + b"DICM" + b"1.2.840.10008.1.2.4.70" + bytes(500))
        test = pd.DataFrame(rows).assign(site_id=1, age=60, implant=0, machine_id=700)
        test["prediction_id"] = test["patient_id"] + "_" + test["laterality"]
        test.to_csv(place / "test.csv", index=False)
        truth = test.drop_duplicates("prediction_id")[["prediction_id", "patient_id", "laterality"]]
        truth[["prediction_id"]].assign(cancer=0.02).to_csv(place / "sample_submission.csv", index=False)
        if place.name == "hidden":
            truth.assign(cancer=[1, 0, 0, 0, 1]).to_csv(place / "truth.csv", index=False)
    (folder / "train.csv").write_text("patient_id\n")
    return folder


@pytest.fixture
def rehearse(tmp_path: Path, competition: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Rehearse a kernel of this source; returns the verdict and what was said."""
    script = runpy.run_path(str(ROOT / "scripts/rehearse"), run_name="rehearse")

    def run(source: str, *options: object, metadata: dict | None = None, beside: dict[str, str] | None = None):
        kernel = tmp_path / "kernel"
        kernel.mkdir(exist_ok=True)
        (kernel / "tiny.py").write_text(source)
        for name, text in (beside or {}).items():
            (kernel / name).write_text(text)
        (kernel / "kernel-metadata.json").write_text(json.dumps(DESCRIBED | (metadata or {})))
        command = [ROOT / "scripts/rehearse", kernel, "--out", tmp_path / "out", *options]
        if "competition_sources" not in (metadata or {}):
            command += ["--competition", competition]
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        handler = signal.getsignal(signal.SIGTERM)
        capsys.readouterr()
        try:
            code = script["main"]()
        except UsageError as error:
            raise RefusedError(str(error)) from error
        except SystemExit as error:
            raise RefusedError(capsys.readouterr().err) from error
        finally:
            signal.signal(signal.SIGTERM, handler)
        said = capsys.readouterr()
        result = json.loads(said.out)
        assert code == (0 if result["verdict"] == "Complete" else 1)
        return result, said.err

    return run


SPY = """
import os, socket, sys
from pathlib import Path

def can(action):
    try:
        action()
    except OSError:
        return False
    return True

def listen():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()

print("FOUND", {
    "script": __file__, "path": sys.path[0], "siblings": sorted(p.name for p in Path(__file__).parent.iterdir()),
    "cwd": os.getcwd(), "run_type": os.environ["KAGGLE_KERNEL_RUN_TYPE"],
    "writes": [p for p in ("/kaggle/working", "/tmp", "/kaggle/temp", "/kaggle/input", "/kaggle/src", "/", "/usr")
               if can(lambda: Path(p, "a-file").write_text("x"))],
    "network": can(lambda: socket.create_connection(("192.0.2.1", 80), timeout=1)), "loopback": can(listen),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "inputs": sorted(str(p.relative_to("/kaggle/input")) for p in Path("/kaggle/input").glob("*/*/*")),
    "own": sorted(name for name in os.environ if "MINE" in name), "home": Path("/root/.ssh").exists(),
    "token": os.path.isfile(os.environ["KAGGLE_API_V1_TOKEN"]),
})
"""


@sandboxed
def test_the_sandbox_is_what_kaggle_gives(rehearse, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The truth is nowhere."""
    monkeypatch.setenv("MINE_SECRET", "1")
    (tmp_path / "weights").mkdir()
    verdict, talk = rehearse(
        SPY,
        "--dataset",
        f"my-weights={tmp_path / 'weights'}",
        metadata={"dataset_sources": ["OWNER/my-weights"]},
        beside={"sibling.py": ""},
    )
    assert verdict["sandbox"] == "bubblewrap", talk
    found = ast.literal_eval(talk.split("FOUND ")[1].splitlines()[0])
    assert found == {
        "script": "/kaggle/src/script.py",
        "path": "/kaggle/src",
        "siblings": ["script.py"],
        "cwd": "/kaggle/working",
        "run_type": "Batch",
        "writes": ["/kaggle/working", "/tmp", "/kaggle/temp"],
        "network": False,
        "loopback": True,
        "interfaces": ["lo"],
        "inputs": [
            *(
                f"competitions/{SLUG}/{name}"
                for name in ("sample_submission.csv", "test.csv", "test_images", "train.csv")
            ),
            "datasets/owner/my-weights",
        ],
        "own": [],
        "home": False,
        "token": True,
    }


@sandboxed
@pytest.mark.parametrize(
    ("layout", "places"),
    [
        ("new", ["datasets/owner/my-data", "notebooks/owner/my-kernel", "models/owner/net/tensorflow2/fold/3"]),
        ("old", ["my-data", "my-kernel", "net/tensorflow2/fold/3"]),
    ],
)
def test_every_kind_of_source_in_both_layouts(rehearse, tmp_path: Path, layout: str, places: list[str]) -> None:
    options = []
    for name in ("my-data", "my-kernel", "net"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
        options += ["--dataset", f"{name}={tmp_path / name}"]
    source = f"for place in {places}: print('HAS', open(f'/kaggle/input/{{place}}/content').read())"
    verdict, talk = rehearse(
        source,
        "--layout",
        layout,
        *options,
        metadata={
            "competition_sources": [],
            "dataset_sources": ["OWNER/my-data/4"],
            "kernel_sources": ["OWNER/my-kernel"],
            "model_sources": ["OWNER/net/TensorFlow2/fold/3"],
        },
    )
    assert verdict["verdict"] == "Complete", talk
    assert [line for line in talk.splitlines() if line.startswith("HAS")] == [
        f"HAS {next(name for name in ('my-data', 'my-kernel', 'net') if name in place)}" for place in places
    ]


THREW, EXCEEDED, SECRET = "Notebook Threw Exception", "Notebook Exceeded Allowed Compute", "Secret In Output"
FORK = """
import multiprocessing, time
def work():
    held = b'x' * 400_000_000
    time.sleep(60)
child = multiprocessing.get_context('fork').Process(target=work); child.start(); child.join()
"""
GROWS = """
import time
with open('a.bin', 'wb') as file:
    while file.write(bytes(1_000_000)): time.sleep(0.1)
"""
# Source, Kaggle's word, what the explanation or the advice says.
TRAPS = [
    ("import helper", THREW, "helper lies beside the script"),
    ("import no_such_package", THREW, "no_such_package is not there"),
    ("open('table.csv')", THREW, "table.csv lies beside the script"),
    ("open('/kaggle/input/a', 'w')", THREW, "Inputs and source are read-only"),
    ("import urllib.request; urllib.request.urlopen('http://a.org', timeout=2)", THREW, "There is no network"),
    ("open('/home/me/data.csv')", THREW, "/home/me/data.csv lies on"),
    ("open('/kaggle/input/weights/a.h5')", THREW, "/kaggle/input/weights/a.h5 is not there"),
    (FORK, EXCEEDED, "more memory than is available (0.3 GB)"),
    ("open('a.bin', 'wb').write(bytes(6_000_000))", EXCEEDED, "more than 0.005 GB"),
    (GROWS, EXCEEDED, "more than 0.005 GB"),
    ("print('submission.csv comes later')", "Submission CSV Not Found", "no submission.csv in"),
    ("import os; print(dict(os.environ))", SECRET, "_SECRETS_TOKEN and KAGGLE_DATA_PROXY_TOKEN stands in the log"),
    (
        "import os; open('a.txt', 'w').write(open(os.environ['KAGGLE_API_V1_TOKEN']).read())",
        SECRET,
        "KAGGLE_API_V1_TOKEN stands in /kaggle/working/a.txt",
    ),
]


@sandboxed
@pytest.mark.parametrize(("source", "word", "said"), TRAPS)
def test_a_trap_is_caught(rehearse, source: str, word: str, said: str) -> None:
    options = ["--skip-checks", "--memory-limit", 0.3, "--disk-limit", 0.005, "--time-limit", "120s"]
    verdict, talk = rehearse(source, *options, beside={"helper.py": "", "table.csv": ""})
    assert verdict["verdict"] == word, talk
    assert said in " ".join([verdict["commit"]["explanation"], *verdict["commit"]["advice"]])
    assert said in talk


@sandboxed
def test_a_log_that_is_too_long_to_read_is_remarked(rehearse) -> None:
    verdict, _ = rehearse("for _ in range(220): print('x' * 99_999)")
    assert verdict["verdict"] == "Complete"
    assert "it printed 22 MB" in verdict["warnings"][0]


def test_a_plain_process_is_held_to_time_and_says_what_is_not_checked(rehearse) -> None:
    """Its daemons are ended, too, and Python's sockets are refused."""
    mark = "30.564738"
    source = f"""
import socket, subprocess, time
subprocess.Popen(['sleep', '{mark}'], start_new_session=True)
try:
    socket.create_connection(("192.0.2.1", 80), timeout=1)
except OSError as error:
    print("REFUSED", error.errno)
time.sleep(60)
"""
    verdict, talk = rehearse(source, "--time-limit", "5s", "--no-sandbox")
    assert verdict["verdict"] == "Notebook Timeout"
    assert verdict["sandbox"] is None
    assert "REFUSED 101" in talk
    assert {"network off", "read-only input", "absolute /kaggle paths"} <= set(verdict["not_checked"])
    assert mark not in processes()


@sandboxed
def test_a_good_kernel_is_run_twice_and_scored(rehearse, competition: Path, tmp_path: Path) -> None:
    source = (
        START
        + """
images = sorted(data.glob("test_images/*/*.dcm"))
print("IMAGES", len(images), "SCORING", bool(os.environ.get("KAGGLE_IS_COMPETITION_RERUN")), "TRUTH",
      (data / "truth.csv").exists())
"""
    )
    verdict, talk = rehearse(source, "--hidden", competition / "hidden", "--broken", 3)
    assert verdict["verdict"] == "Complete", talk
    assert "IMAGES 4 SCORING False TRUTH False" in talk
    assert "IMAGES 8 SCORING True TRUTH False" in talk  # ten, and a breast's two are missing
    broken = pd.read_csv(tmp_path / "out.hidden/broken.csv")
    assert broken["how"].value_counts().to_dict() == {"missing": 2, "truncated": 1, "empty": 1}
    # All breasts have the sample's 0.0212: precision 2/5, and recall 0.0212.
    assert verdict["score"]["value"] == pytest.approx(2 * 0.4 * 0.0211676964 / (0.4 + 0.0211676964))
    assert (verdict["score"]["breasts"], verdict["score"]["positives"]) == (5, 2)
    assert "pF1 0.040" in talk
    assert len(pd.read_csv(tmp_path / "out/submission.csv")) == 2
    assert len(pd.read_csv(tmp_path / "out.rerun/submission.csv")) == 5


HIDDEN_TRAPS = [
    ("raise ValueError", THREW, "exit code 1"),
    ("[p.read_bytes()[200] for p in data.glob('test_images/*/*')]", THREW, "exit code 1"),
    ("open('submission.csv', 'w').writelines(lines[:3])", "Submission Scoring Error", "3 missing (10_L, 10_R, 11_L)"),
    ("if len(lines) > 3: os.remove('submission.csv')", "Submission CSV Not Found", "no submission.csv"),
]


@sandboxed
@pytest.mark.parametrize(("line", "word", "said"), HIDDEN_TRAPS)
def test_what_fails_on_the_hidden_set_alone_is_caught(
    rehearse, competition: Path, line: str, word: str, said: str
) -> None:
    verdict, talk = rehearse(START + line, "--hidden", competition / "hidden", "--broken", 3)
    early = line.startswith("raise")  # in the commit run, which no scoring run follows
    assert (verdict["commit"]["verdict"] == "Complete") != early, talk
    assert verdict["verdict"] == verdict["commit" if early else "rerun"]["verdict"] == word
    assert (verdict["rerun"] is None) == early
    assert said in verdict["explanation"]
    assert verdict["score"] is None


@sandboxed
def test_settings_are_filled_in_as_a_push_does(rehearse) -> None:
    source = 'SETTINGS = {"PRESET": "default"}\nprint("PRESET", SETTINGS["PRESET"], __file__)'
    verdict, talk = rehearse(source, "--settings", "PRESET=a b")
    assert verdict["verdict"] == "Complete"
    assert "PRESET a b /kaggle/src/script.py" in talk
    with pytest.raises(RefusedError, match="Did you mean 'PRESET'"):
        rehearse(source, "--settings", "PRESETS=a")


def test_who_ends_the_rehearsal_ends_the_kernel(tmp_path: Path) -> None:
    """In the sandbox or as a plain process, by Ctrl-C or by a job's end."""
    mark = "30.127456"
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/tiny.py").write_text(f"import subprocess; subprocess.run(['sleep', '{mark}'])")
    (tmp_path / "kernel/kernel-metadata.json").write_text(json.dumps(DESCRIBED | {"competition_sources": []}))
    for words, number in (([], signal.SIGINT), (["--no-sandbox"], signal.SIGTERM)):
        command = [sys.executable, ROOT / "scripts/rehearse", tmp_path / "kernel", "--out", tmp_path / "out"]
        pipe = subprocess.PIPE
        with subprocess.Popen([*command, *words], stdout=pipe, stderr=pipe) as process:
            assert wait_until(lambda: f"sleep {mark}" in processes())
            process.send_signal(number)
            assert b"Stopped: the kernel was ended." in process.communicate(timeout=60)[1]
        assert process.returncode == 130
        assert f"sleep {mark}" not in processes()


@sandboxed
def test_wheels_are_installed_offline_without_touching_this_environment(rehearse, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    write_wheel(wheels, "rehearsed", "py3-none-any")
    source = """
import subprocess, sys
subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--find-links",
                "/kaggle/input/datasets/owner/my-wheels", "rehearsed"], check=True)
import rehearsed
print("FROM", rehearsed.__file__)
"""
    described = {"dataset_sources": ["OWNER/my-wheels"]}
    verdict, talk = rehearse(source, "--dataset", f"my-wheels={wheels}", metadata=described)
    assert verdict["verdict"] == "Complete", talk
    assert "FROM /kaggle/lib/rehearsed.py" in talk


def write_wheel(folder: Path, name: str, tags: str) -> None:
    """A wheel of one module."""
    import zipfile

    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-{tags}.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tags}\n")
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


# What the checks before the run find: source, changes to the metadata, what is said.
UNREADY = {
    "a sibling file": ("import helper", {}, "imports helper from this folder"),
    "a typo in enable_internet": ("pass", {"enable_interent": False}, "unknown key 'enable_interent'"),
    "the internet on": ("'submission.csv'", {"enable_internet": True}, "enable_internet is not false"),
    "a source of a megabyte": (f"x = '{'a' * 1_000_001}'", {}, "at most 1,000,000"),
    "a return outside": ("return 1", {}, "no Python 3.12: 'return' outside function"),
}


@pytest.mark.parametrize("case", UNREADY)
def test_what_will_fail_at_kaggle_is_said_before_anything_runs(rehearse, tmp_path: Path, case: str) -> None:
    source, metadata, said = UNREADY[case]
    verdict, talk = rehearse(source, metadata=metadata, beside={"helper.py": ""})
    assert verdict["verdict"] == "Not Ready For Kaggle"
    assert said in talk
    assert verdict["commit"] is None
    assert not (tmp_path / "out").exists()


def test_wheels_for_another_interpreter_are_named(rehearse, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for tags in ("cp311-cp311-manylinux_2_17_x86_64", "cp312-cp312-macosx_11_0_arm64"):
        (wheels / f"codec-1.0-{tags}.whl").touch()
    for tags in ("cp313-cp313-manylinux_2_28_x86_64", "cp312-cp312-manylinux_2_28_x86_64"):
        (wheels / f"tool-1.0-{tags}.whl").touch()
    verdict, talk = rehearse(
        "pass", "--dataset", f"my-wheels={wheels}", metadata={"dataset_sources": ["OWNER/my-wheels"]}
    )
    assert verdict["verdict"] == "Not Ready For Kaggle"
    assert len(verdict["problems"]) == 1
    assert (
        "codec-1.0-cp311-cp311-manylinux_2_17_x86_64.whl, codec-1.0-cp312-cp312-macosx_11_0_arm64.whl: not for" in talk
    )


def test_working_begins_empty_and_foreign_files_are_left_alone(rehearse, tmp_path: Path) -> None:
    """A submission of an earlier run is not this run's. What was refused costs nobody's files."""
    source = "open('a', 'w').write('submission.cs')"
    rehearse("open('submission.csv', 'w')", "--no-sandbox")
    assert rehearse(source + "; 'submission.csv'", "--no-sandbox")[0]["verdict"] == "Submission CSV Not Found"
    with pytest.raises(RefusedError):
        rehearse(source, "--no-sandbox", "--hidden", "nowhere")
    assert (tmp_path / "out/a").is_file()
    with pytest.raises(RefusedError, match="is an input and lies in"):
        rehearse(START, "--dataset", f"mine={tmp_path / 'out'}", metadata={"dataset_sources": ["OWNER/mine"]})
    (tmp_path / "out.verdict.json").unlink()
    (tmp_path / "out/mine.txt").write_text("x")
    with pytest.raises(RefusedError, match="no rehearsal wrote it"):
        rehearse(START, "--no-sandbox")
    assert (tmp_path / "out/mine.txt").is_file()


def test_what_was_refused_leaves_no_permit_to_empty_the_folder_the_next_time(
    rehearse, competition: Path, tmp_path: Path
) -> None:
    shutil.copytree(competition / "hidden", tmp_path / "hidden")
    (tmp_path / "hidden/test.csv").write_text("image_id\n1\n")
    for hidden, error in (("nowhere", RefusedError), (tmp_path / "hidden", KeyError)):
        with pytest.raises(error):
            rehearse(START, "--hidden", hidden)
        assert {path.name for path in tmp_path.iterdir()} == {"kernel", "hidden"}


KEY = "0123456789abcdef0123456789abcdef"
# How a kernel gives away what it finds, what is said of it, and where.
GIVEN_AWAY = {
    "in the log": ("print(open(path).read())", "It printed the value of your Kaggle credentials"),
    "in the log of a run that fails": ("raise ValueError(open(path).read())", "It printed the value of your Kaggle"),
    "of the environment": ("print('token-of' + '-mine')", "It printed the value of MINE_TOKEN"),
    "in a file": ("shutil.copy(path, 'a.txt')", "value of your Kaggle credentials stands in /kaggle/working/a.txt"),
}


@pytest.mark.parametrize("case", GIVEN_AWAY)
def test_a_plain_process_that_gives_away_ones_own_key_fails(
    rehearse, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str
) -> None:
    """It can read the real one, so that is looked for as the stand-ins are; and the log does not keep it."""
    line, said = GIVEN_AWAY[case]
    path = tmp_path / "home/.kaggle/kaggle.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"username": "me", "key": KEY}))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MINE_TOKEN", "token-of-mine")
    verdict, talk = rehearse(f"import os, shutil\npath = {str(path)!r}\n{line}", "--no-sandbox", "--skip-checks")
    assert talk.startswith(
        "Warning: the kernel runs as a plain process and can read and change every file that you can"
    )
    assert verdict["verdict"] == "Secret In Output"
    assert said in verdict["explanation"]
    assert "It is not a stand-in but your own" in talk
    for text in (talk, json.dumps(verdict), (tmp_path / "out.log").read_text()):
        assert KEY not in text
        assert "token-of-mine" not in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dataset", "my-wieghts=/tmp"], "Did you mean 'my-weights'?"),
        (["--dataset", "my-weights"], "expected SLUG=FOLDER"),
        (["--hidden", "/tmp/nothing-here"], "/tmp/nothing-here/test.csv: no such file"),
        (["--time-limit", "soon"], "got 'soon'"),
        (["--hidden", "/tmp", "--rerun"], "not allowed with"),
    ],
)
def test_wrong_usage_is_said_and_nothing_is_run(rehearse, options: list[str], said: str) -> None:
    with pytest.raises(RefusedError) as refused:
        rehearse(START, *options, metadata={"dataset_sources": ["OWNER/my-weights"]})
    assert said in str(refused.value)
    assert "Traceback" not in str(refused.value)


def test_a_notebook_is_refused_with_what_to_do(rehearse) -> None:
    with pytest.raises(RefusedError, match="jupyter nbconvert --to script"):
        rehearse("", metadata={"code_file": "tiny.ipynb", "kernel_type": "notebook"}, beside={"tiny.ipynb": "{}"})
