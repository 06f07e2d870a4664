"""infer on a whole hidden test: a valid submission whatever happens, and the failures named."""

from __future__ import annotations

import io
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rsna_kit.competition.paths import find_competition
from rsna_kit.competition.submission import check_submission, write_submission
from rsna_kit.competition.tables import read_sample, read_test
from rsna_kit.config import PRIOR, Config, DecodeConfig, InferConfig
from rsna_kit.data.shards import open_prepared, read_picture
from rsna_kit.imaging.pace import Pace
from rsna_kit.imaging.render import Rendered, read_image
from rsna_kit.models.bundle import load_model, open_bundle
from rsna_kit.models.ensemble import Ensemble
from rsna_kit.models.members import open_members
from rsna_kit.models.network import build_classifier, build_network
from rsna_kit.recipes import infer as infer_module
from rsna_kit.recipes.blend import write_list
from rsna_kit.recipes.infer import infer
from rsna_kit.recipes.prepare import prepare
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import BundleError, MissingDependencyError, TableError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import read_csv, read_json, sha256_file, write_json
from rsna_kit.training.export import set_threshold, write_bundle

pytestmark = pytest.mark.tf


class Run:
    """infer on a copy of the hidden test; what it said, and what it wrote."""

    def __init__(self, folder: Path, settings: InferConfig) -> None:
        self.hidden, self.out, self._settings = folder / "hidden", folder / "out", settings
        self.test = read_test(self.hidden / "test.csv")
        self.files = dict(find_competition(self.hidden).files("test", self.test))

    def __call__(self, *bundles: Path, clock: Clock | None = None, more: Any = None, **settings: Any) -> dict[str, Any]:
        self._said = io.StringIO()
        events, settings_ = Events(stream=self._said), replace(self._settings, **settings)
        return infer(self.hidden, self.out, bundles, settings_, events, clock or Clock(), **(more or {}))

    @property
    def said(self) -> str:
        return self._said.getvalue()

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.out / f"{name}.csv", dtype={"image_id": str})

    @property
    def submission(self) -> pd.DataFrame:
        """After checking that it would score."""
        frame, sample = self.table("submission"), read_sample(self.hidden / "sample_submission.csv")
        check_submission(frame, sample)
        assert list(frame["prediction_id"]) == list(sample["prediction_id"])
        return frame


@pytest.fixture
def run(phantom: Path, tmp_path: Path, tiny: Config) -> Run:
    shutil.copytree(phantom / "hidden", tmp_path / "hidden")
    return Run(tmp_path, tiny.infer)


def sigmoid(values: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(values, np.float64)))


def test_scores_are_those_of_the_model(run: Run, bundle: Path, tiny: Config) -> None:
    """Every image, read and scored alone, gives the breast's mean: no row can have slipped."""
    result = run(bundle)
    model = load_model(open_bundle(bundle))
    scores = {}
    for image_id, path in run.files.items():
        picture = read_image(path, image_id, tiny.image).image[None, ..., None]
        scores[image_id] = sigmoid(np.asarray(model(picture))[0, 0])
    wanted = run.test["image_id"].map(scores).groupby(run.test["prediction_id"]).mean()
    got = run.table("scores").set_index("prediction_id")["score"]
    assert (result["ok"], result["scored"]) == (True, len(run.test))
    np.testing.assert_allclose(got, wanted[got.index], atol=1e-5)
    assert (run.submission.set_index("prediction_id")["cancer"] == (got >= 0.5)).all()
    plain = run.table("image_scores")["score"]
    assert run(bundle, tta="flip")["tta"] == "flip"  # another run: it starts from nothing
    assert "resuming" not in run.said
    assert not np.array_equal(plain, run.table("image_scores")["score"])


FITTED = {"slope": 1.5, "intercept": -2.0}


def test_a_calibration_adds_probabilities(run: Run, bundle: Path, tmp_path: Path) -> None:
    """A breast of which no image can be read has the prior as its probability, whatever the calibration makes of it."""
    shutil.rmtree(next(iter(run.files.values())).parent)
    calibrated = Path(shutil.copytree(bundle, tmp_path / "calibrated"))
    set_threshold(calibrated, 0.5, "test", FITTED)
    assert run(calibrated)["calibration"] is True
    table = read_csv(run.out / "scores.csv", [])
    assert list(table.columns) == ["prediction_id", "score", "probability", "images"]
    wanted = sigmoid(1.5 * np.log(table["score"] / (1 - table["score"])) - 2)
    unseen = table["images"] == 0
    assert unseen.any()
    np.testing.assert_allclose(table["probability"], np.where(unseen, PRIOR, wanted), rtol=1e-9)
    assert (run.submission["cancer"] == ((table["score"] >= 0.5) & ~unseen)).all()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (None, "the bundles differ in their calibration: blend"),
        ({"slope": -1}, "calibration: got {'slope': -1}, expected slope"),
    ],
)
def test_without_a_usable_calibration_the_column_is_left_out_and_it_is_said(
    run: Run, bundle: Path, tmp_path: Path, other: dict | None, said: str
) -> None:
    calibrated = Path(shutil.copytree(bundle, tmp_path / "models" / "calibrated"))
    set_threshold(calibrated, 0.5, "test", other or FITTED)
    if other is None:
        without = Path(shutil.copytree(bundle, tmp_path / "models" / "without"))
        metadata = read_json(without / "metadata.json")
        with open(without / "model.weights.h5", "ab") as file:
            file.write(b"other weights")  # as far as their checksum tells
        metadata["sha256"]["model.weights.h5"] = sha256_file(without / "model.weights.h5")
        write_json(without / "metadata.json", metadata)
    result = run(tmp_path / "models")
    assert f"scores.csv gets no column probability: {said}" in run.said
    assert (result["ok"], result["calibration"]) == (True, False)
    assert list(run.table("scores").columns) == ["prediction_id", "score", "images"]


def test_bad_files_cost_their_images_only(run: Run, bundle: Path) -> None:
    """Truncated, empty, non-DICOM, missing, constant, wrong-size, unknown: the submission scores, each is named."""
    test, files = run.test, run.files
    first = test.loc[test["prediction_id"] == test["prediction_id"].iloc[0], "image_id"]
    names = test.loc[~test["image_id"].isin(first), "image_id"].iloc[:7].tolist()
    for image_id in first:
        files[image_id].write_bytes(files[image_id].read_bytes()[: files[image_id].stat().st_size // 2])
    files[names[0]].write_bytes(b"")
    files[names[1]].write_bytes(b"GIF89a" * 500)
    files[names[2]].unlink()
    rewrite(files[names[3]], np.full((64, 64), 900, "<u2"))
    rewrite(files[names[4]], np.zeros((64, 64), "<u2"))
    rewrite(files[names[5]], Rows=4000)
    unknown = re.sub(rb"1\.2\.840\.10008\.1\.2\.4\.[79]0", b"1.2.840.10008.1.2.4.99", files[names[6]].read_bytes())
    files[names[6]].write_bytes(unknown)
    result, failures = run(bundle), run.table("failures").set_index("image_id")
    assert not result["ok"]
    assert result["failed"] == len(failures) == len(first) + 7
    assert set(failures.index) == {*first, *names}
    assert set(failures.loc[list(first), "stage"]) <= {"header", "decode"}
    assert failures.loc[names, "stage"].tolist() == ["header"] * 3 + ["render"] * 2 + ["decode"] * 2
    assert failures["reason"].str.len().min() > 20
    assert len(run.submission)
    unseen = run.table("scores").set_index("prediction_id").loc[test["prediction_id"].iloc[0]]
    assert (unseen["score"], unseen["images"]) == (PRIOR, 0)


def rewrite(path: Path, pixels: np.ndarray | None = None, **elements: int) -> None:
    """Change a DICOM file: other pixels (uncompressed), other elements."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian

    dataset = pydicom.dcmread(path)
    if pixels is not None:
        dataset.PixelData = pixels.tobytes()
        dataset["PixelData"].VR = "OW"
        dataset["PixelData"].is_undefined_length = False
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        elements = {"Rows": pixels.shape[0], "Columns": pixels.shape[1]}
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


def test_without_a_second_of_time_the_prior_is_submitted(run: Run, bundle: Path) -> None:
    result = run(bundle, clock=Clock(limit_s=0.001))
    assert result["out_of_time"] == len(run.test) - result["scored"] > 0
    assert set(run.submission["cancer"]) <= {0, 1}


def test_a_killed_run_leaves_a_valid_submission_and_resumes(run: Run, bundle: Path) -> None:
    """The prior at first; SIGKILL once some images are scored: not scored again, and the end is that of a whole run."""
    code = (
        f"import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import toy_networks; toy_networks.add_backbone()\n"
        "from rsna_kit.recipes import infer; from rsna_kit import cli; infer.SAVE_EVERY_S = 0\n"
        "save = infer._Scoring.write\n"
        "def slowly(*arguments): time.sleep(0.2); return save(*arguments)\n"
        "infer._Scoring.write = slowly\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "infer", run.hidden, run.out]
    command += ["--bundle", bundle, "--set", "infer.batch_size=4"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    for name, pause in (("submission.csv", 0.005), ("image_scores.csv", 0.01)):
        while not (run.out / name).exists():
            time.sleep(pause)
            assert process.poll() is None
        if name == "submission.csv":
            assert set(run.submission["cancer"]) == {0.0211676964}
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    scored = run.table("image_scores")
    assert 0 < len(scored) < len(run.test)
    assert len(run.submission)
    resumed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"resuming: {len(scored)} images are done" in resumed.stderr
    content = (run.out / "submission.csv").read_bytes()
    run.out = run.out.parent / "whole"
    run(bundle, batch_size=4)
    assert (run.out / "submission.csv").read_bytes() == content


def other_images(run: Run, bundle: Path, tiny: Config) -> list[Path]:
    other = replace(tiny, image=replace(tiny.image, margin=0.2))
    write_bundle(run.out / "other", build_classifier(tiny.model, tiny.image), other, 1, 0.5, {}, "none")
    return [bundle, run.out / "other"]


def damaged(run: Run, bundle: Path, tiny: Config) -> list[Path]:
    weights = Path(shutil.copytree(bundle, run.out / "damaged")) / "model.weights.h5"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    return [weights.parent]


def bad_table(run: Run, bundle: Path, tiny: Config) -> list[Path]:
    table = pd.read_csv(run.hidden / "test.csv", dtype=str)
    table.loc[0, "laterality"] = "B"
    table.to_csv(run.hidden / "test.csv", index=False)
    return [bundle]


def another_sample(run: Run, bundle: Path, tiny: Config) -> list[Path]:
    sample = pd.read_csv(run.hidden / "sample_submission.csv")
    sample.iloc[1:].to_csv(run.hidden / "sample_submission.csv", index=False)
    return [bundle]


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (other_images, BundleError, "share one image section"),
        (damaged, BundleError, r"model\.weights\.h5"),
        (lambda run, bundle, tiny: [bundle, run.out / "typo"], BundleError, "found in: .*typo. Give folders"),
        (bad_table, TableError, "laterality"),
        (another_sample, TableError, r"only in test\.csv"),
    ],
)
def test_what_is_refused_leaves_the_prior_or_what_stood_there(
    run: Run, bundle: Path, tiny: Config, spoil: Callable[..., list[Path]], kind: type[Exception], message: str
) -> None:
    given = spoil(run, bundle, tiny)
    with pytest.raises(kind, match=message):
        run(*given)
    assert set(run.submission["cancer"]) == {PRIOR}
    sample = read_sample(run.hidden / "sample_submission.csv")
    write_submission(sample.assign(cancer=1), sample, run.out / "submission.csv")
    with pytest.raises(kind, match=message):
        run(*given)
    assert set(run.submission["cancer"]) == {1}


def test_what_cannot_work_here_is_refused(run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"decode\.backend: got 'dask', infer decodes in threads"):
        run(bundle, more={"decode": DecodeConfig(backend="dask")})
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"rsna-kit\[runtimes\]"):
        run(bundle, runtime="openvino")
    assert set(run.submission["cancer"]) == {PRIOR}


def test_prepare_and_infer_show_the_model_the_same_bytes(
    phantom: Path, bundle: Path, tmp_path: Path, tiny: Config, quiet: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training images, given as a test set: what infer scores is what prepare has stored."""
    prepare(phantom, tmp_path / "prepared", tiny, quiet)
    competition = tmp_path / "competition"
    competition.mkdir()
    table = pd.read_csv(phantom / "train.csv", dtype=str)
    table["prediction_id"] = table["patient_id"] + "_" + table["laterality"]
    table[pd.read_csv(phantom / "hidden" / "test.csv").columns].to_csv(competition / "test.csv", index=False)
    (competition / "test_images").symlink_to(phantom / "train_images")
    scored: list[np.ndarray] = []
    watch(monkeypatch, lambda ensemble, images: scored.extend(images[..., 0]))
    assert infer(competition, tmp_path / "out", [bundle], tiny.infer, quiet, Clock())["ok"]
    prepared = open_prepared(tmp_path / "prepared")
    assert len(scored) == len(table)
    for image_id, image in zip(table["image_id"], scored, strict=True):
        assert np.array_equal(read_picture(prepared, image_id), image)


def watch(monkeypatch: pytest.MonkeyPatch, see: Callable[[Ensemble, np.ndarray], None]) -> None:
    """Show every batch that is scored, as it is drawn."""
    stream = Ensemble.stream

    def watched(self: Ensemble, batches: Any) -> Any:
        return stream(self, ((see(self, images), (tag, images))[1] for tag, images in batches))

    monkeypatch.setattr(Ensemble, "stream", watched)


def hasty(monkeypatch: pytest.MonkeyPatch, slow: str, most: int = 10**6) -> None:
    """A clock that always says decoding, or the models, are too slow (when it says so: tests/test_imaging_pace.py)."""

    class Hasty(Pace):
        def update(self, done: int, waited_s: float) -> int:
            if said := self._give_up(float(slow == "decoding"), 1.0, done):
                self._say(said)
            if done >= most:
                raise KeyboardInterrupt
            return self.coarser

    monkeypatch.setattr("rsna_kit.imaging.pace.Pace", Hasty)


@pytest.mark.parametrize("exact", [False, True])
def test_a_run_that_is_short_of_time_asks_for_coarser_images(
    run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    """Unless every pixel was asked for, which is said. The first batch, in which networks are traced, is left out."""
    asked, begun = [], []
    begin = Pace.begin

    def note(path: Path, image_id: str, image: Any, trust: Any, more: int) -> Rendered:
        asked.append((image.decode, more))
        return read_image(path, image_id, image, trust, more)

    monkeypatch.setattr("rsna_kit.imaging.stream.read_image", note)
    monkeypatch.setattr(Pace, "begin", lambda self, done, waited: begun.append(done) or begin(self, done, waited))
    hasty(monkeypatch, "decoding")
    result = run(bundle, batch_size=2, more={"decode": DecodeConfig(workers=1), "exact": exact})
    assert begun == [0, 2]
    assert asked[0] == ("exact" if exact else "reduced", 0)
    assert (result["coarser"], result["given_up"]) == (0 if exact else 2, [])
    assert (max(more for _, more in asked) > 0) is not exact
    assert run.said.count("times coarser from here on") == (0 if exact else 2)
    assert ("--exact: every pixel is decoded, though the bundles were trained on reduced JPEG" in run.said) is exact
    assert len(run.submission)


@pytest.mark.parametrize(("attempt", "gpus"), [(1, "auto"), (2, "none")])
def test_what_an_attempt_before_died_of_may_have_been_a_gpu_that_decodes(
    run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch, attempt: int, gpus: str
) -> None:
    asked = list[str]()
    monkeypatch.setattr("rsna_kit.recipes.images._devices", lambda decode, events: asked.append(decode.gpus) or [])
    assert run(bundle, more={"attempt": attempt})["ok"]
    assert asked == [gpus]
    assert re.search(r"pictures a second: decoding cpu [\d.]+; scoring CPU:0 [\d.]+\n", run.said)


# ---- lists


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory, tiny: Config) -> Path:
    """An untrained breast-level network as a bundle, its attention loud enough to tell it from a mean."""
    import keras

    keras.utils.set_random_seed(2)
    config = replace(tiny, model=replace(tiny.model, kind="breast"))
    network, out = build_network(config, config.image), tmp_path_factory.mktemp("views") / "fold0"
    for name, factor in (("logit", 10), ("attention", 30)):
        kernel = network.get_layer(name).kernel
        kernel.assign(np.asarray(kernel) * factor)
    write_bundle(out, network, config, 0, None, {}, "none")
    set_threshold(out, 0.5, "for tests")
    return out


@pytest.fixture
def listed(bundle: Path, views: Path, tmp_path: Path) -> Path:
    """An image-level and a breast-level bundle with their list: weights 0.25 and 0.75, flipped, threshold 0.4."""
    folder = tmp_path / "blend"
    shutil.copytree(bundle, folder / "bundles" / "images")
    shutil.copytree(views, folder / "bundles" / "views")
    write_list(folder, {"bundles/images": 0.25, "bundles/views": 0.75}, "flip", 0.4, {})
    return folder


def test_a_list_is_scored_as_it_says(run: Run, listed: Path, bundle: Path, views: Path, tiny: Config) -> None:
    """Each picture read, flipped and scored alone; breasts pooled by hand: mean of one, attention of the other."""
    result = run(listed)
    assert (result["weights"], result["tta"], result["threshold"]) == ([0.25, 0.75], "flip", 0.4)
    models = [load_model(open_bundle(path)) for path in (bundle, views)]
    rows = []
    for image_id, path in run.files.items():
        picture = read_image(path, image_id, tiny.image).image[None, ..., None]
        outputs = [(np.asarray(m(picture), np.float64)[0] + np.asarray(m(picture[:, ::-1]))[0]) / 2 for m in models]
        rows.append((sigmoid(outputs[0][0]), *outputs[1]))
    table = pd.DataFrame(rows, columns=["score", "logit", "attention"]).assign(breast=run.test["prediction_id"])
    wanted = {}
    for breast, images in table.groupby("breast"):
        share = np.exp(images["attention"]) / np.exp(images["attention"]).sum()
        pooled = sigmoid((share * images["logit"]).sum())
        assert len(images) == 1 or abs(pooled - sigmoid(images["logit"]).mean()) > 1e-6
        wanted[breast] = 0.25 * images["score"].mean() + 0.75 * pooled
    got = run.table("scores").set_index("prediction_id")["score"]
    np.testing.assert_allclose(got, [wanted[breast] for breast in got.index], atol=1e-5)
    assert (run.submission.set_index("prediction_id")["cancer"] == (got >= 0.4)).all()
    assert list(run.table("image_scores").columns) == ["image_id", "score", "score_1", "attention_1"]


def test_a_list_stands_alone(listed: Path, bundle: Path, tmp_path: Path, quiet: Events) -> None:
    """Copies may lie about; anything else would be scored by nobody knows what weight."""
    assert [member.bundle.path for member in open_members([bundle.parent, bundle], quiet.say).members] == [bundle]
    assert open_members([listed, listed / "bundles" / "images", bundle], quiet.say).source == listed / "ensemble.json"
    second = Path(shutil.copytree(listed, tmp_path / "second"))
    assert open_members([listed, second], quiet.say).threshold == 0.4
    write_list(second, {"bundles/images": 1.0}, "none", 0.5, {})
    with pytest.raises(BundleError, match=r"2 lists found: .*blend/ensemble.json, .*second/ensemble.json\. Give one"):
        open_members([listed, second], quiet.say)
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    set_threshold(other, 0.9, "another")
    with pytest.raises(BundleError, match=r"ensemble.json does not name .*other\. Give the list alone"):
        open_members([listed, other], quiet.say)


def test_what_the_models_give_up_is_done_without_and_recorded(
    run: Run, listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty(monkeypatch, "models")
    flips = list[bool]()
    watch(monkeypatch, lambda ensemble, images: flips.append(ensemble._flip))
    result = run(listed, batch_size=4)
    assert result["given_up"] == [
        {"given_up": "TTA", "after_images": 4},
        {"given_up": str(listed / "bundles" / "images"), "after_images": 8},
    ]
    assert flips[:2] == [True, False]
    assert result["ok"]
    scores = run.table("image_scores")
    assert scores["score"].isna().tolist() == [row >= 8 for row in range(len(scores))]
    assert scores["score_1"].notna().all()
    assert len(run.submission)


def test_a_resumed_run_says_what_the_first_one_gave_up(run: Run, listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images keep scores of fewer members: nobody may take the whole for the work of all."""
    monkeypatch.setattr(infer_module, "SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as patch:
        hasty(patch, "models", most=8)
        with pytest.raises(KeyboardInterrupt):
            run(listed, batch_size=4)
    result = run(listed, batch_size=4)
    assert "resuming: 4 images are done\nthe run before gave something up" in run.said
    assert (result["coarser"], result["given_up"]) == (0, [{"given_up": "TTA", "after_images": 4}])
