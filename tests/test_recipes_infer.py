"""infer on a whole hidden test: a valid submission whatever happens, and the failures named."""

from __future__ import annotations

import io
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsna_kit.competition.paths import find_competition
from rsna_kit.competition.submission import check_submission, write_submission
from rsna_kit.competition.tables import read_sample, read_test
from rsna_kit.config import PRIOR, Config, DecodeConfig, ImageConfig
from rsna_kit.dicom.decode import Trust
from rsna_kit.imaging.render import Rendered, read_image
from rsna_kit.models.bundle import load_model, open_bundle
from rsna_kit.recipes import infer as infer_module
from rsna_kit.recipes.infer import infer
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import BundleError, MissingDependencyError, TableError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import read_csv, read_json, sha256_file, write_json
from rsna_kit.training.export import set_threshold

pytestmark = pytest.mark.tf


@pytest.fixture
def hidden(phantom: Path, tmp_path: Path) -> Path:
    shutil.copytree(phantom / "hidden", tmp_path / "hidden")
    return tmp_path / "hidden"


def submission(out: Path, competition: Path) -> pd.DataFrame:
    """The submission, after checking that it would score."""
    frame = pd.read_csv(out / "submission.csv")
    sample = read_sample(competition / "sample_submission.csv")
    check_submission(frame, sample)
    assert list(frame["prediction_id"]) == list(sample["prediction_id"])
    return frame


def test_scores_are_those_of_the_model(hidden: Path, bundle: Path, tmp_path: Path, tiny: Config, quiet: Events) -> None:
    """Every image, read and scored alone, gives the breast's mean: no row can have slipped."""
    result = infer(hidden, tmp_path / "out", [bundle], tiny.infer, quiet, Clock())
    test, model = read_test(hidden / "test.csv"), load_model(open_bundle(bundle))
    scores = {}
    for image_id, path in find_competition(hidden).files("test", test):
        picture = read_image(path, image_id, tiny.image).image[None, ..., None]
        scores[image_id] = 1 / (1 + np.exp(-float(np.asarray(model(picture))[0, 0])))
    wanted = test["image_id"].map(scores).groupby(test["prediction_id"]).mean()
    got = pd.read_csv(tmp_path / "out" / "scores.csv").set_index("prediction_id")["score"]
    assert result["ok"]
    assert result["scored"] == len(test)
    np.testing.assert_allclose(got, wanted[got.index], atol=1e-5)
    called = submission(tmp_path / "out", hidden).set_index("prediction_id")["cancer"]
    assert (called == (got >= 0.5)).all()


FITTED = {"slope": 1.5, "intercept": -2.0}


def test_a_calibration_adds_probabilities(
    hidden: Path, bundle: Path, tmp_path: Path, tiny: Config, quiet: Events
) -> None:
    """A breast of which no image can be read has the prior as its probability, whatever the calibration makes of it."""
    for _, path in find_competition(hidden).files("test", read_test(hidden / "test.csv").iloc[:1]):
        shutil.rmtree(path.parent)
    calibrated = Path(shutil.copytree(bundle, tmp_path / "calibrated"))
    set_threshold(calibrated, 0.5, "test", FITTED)
    assert infer(hidden, tmp_path / "out", [calibrated], tiny.infer, quiet, Clock())["calibration"] is True
    table = read_csv(tmp_path / "out" / "scores.csv", [])
    assert list(table.columns) == ["prediction_id", "score", "probability", "images"]
    wanted = 1 / (1 + np.exp(-(1.5 * np.log(table["score"] / (1 - table["score"])) - 2)))
    unseen = table["images"] == 0
    assert unseen.any()
    np.testing.assert_allclose(table["probability"], np.where(unseen, PRIOR, wanted), rtol=1e-9)
    called = submission(tmp_path / "out", hidden)["cancer"]
    assert (called == ((table["score"] >= 0.5) & ~unseen)).all()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (None, "the bundles differ in their calibration: blend"),
        ({"slope": -1}, "calibration: got {'slope': -1}, expected slope"),
    ],
)
def test_without_a_usable_calibration_the_column_is_left_out_and_it_is_said(
    hidden: Path, bundle: Path, tmp_path: Path, tiny: Config, other: dict | None, said: str
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
    stream = io.StringIO()
    result = infer(hidden, tmp_path / "out", [tmp_path / "models"], tiny.infer, Events(stream=stream), Clock())
    assert f"scores.csv gets no column probability: {said}" in stream.getvalue()
    assert result["ok"]
    assert result["calibration"] is False
    assert list(pd.read_csv(tmp_path / "out" / "scores.csv").columns) == ["prediction_id", "score", "images"]


def test_bad_files_cost_their_images_only(
    hidden: Path, bundle: Path, tmp_path: Path, tiny: Config, quiet: Events
) -> None:
    """Truncated, empty, non-DICOM, missing, constant, wrong-size, unknown: the submission scores, each is named."""
    test = read_test(hidden / "test.csv")
    first = test[test["prediction_id"] == test["prediction_id"].iloc[0]]
    others = test[test["prediction_id"] != test["prediction_id"].iloc[0]].iloc[:7]
    files = dict(find_competition(hidden).files("test", pd.concat([first, others])))
    for image_id in first["image_id"]:
        files[image_id].write_bytes(files[image_id].read_bytes()[: files[image_id].stat().st_size // 2])
    names = list(others["image_id"])
    files[names[0]].write_bytes(b"")
    files[names[1]].write_bytes(b"GIF89a" * 500)
    files[names[2]].unlink()
    rewrite(files[names[3]], np.full((64, 64), 900, "<u2"))
    rewrite(files[names[4]], np.zeros((64, 64), "<u2"))
    rewrite(files[names[5]], Rows=4000)
    unknown = re.sub(rb"1\.2\.840\.10008\.1\.2\.4\.[79]0", b"1.2.840.10008.1.2.4.99", files[names[6]].read_bytes())
    files[names[6]].write_bytes(unknown)
    result = infer(hidden, tmp_path / "out", [bundle], tiny.infer, quiet, Clock())
    failures = pd.read_csv(tmp_path / "out" / "failures.csv", dtype=str).set_index("image_id")
    assert not result["ok"]
    assert result["failed"] == len(failures) == len(first) + 7
    assert set(failures.index) == set(first["image_id"]) | set(names)
    assert set(failures.loc[list(first["image_id"]), "stage"]) <= {"header", "decode"}
    assert failures.loc[names, "stage"].tolist() == ["header"] * 3 + ["render"] * 2 + ["decode"] * 2
    assert failures["reason"].str.len().min() > 20
    submission(tmp_path / "out", hidden)
    scores = pd.read_csv(tmp_path / "out" / "scores.csv").set_index("prediction_id")
    assert scores.loc[first["prediction_id"].iloc[0], "score"] == PRIOR
    assert scores.loc[first["prediction_id"].iloc[0], "images"] == 0


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


def test_without_a_second_of_time_the_prior_is_submitted(
    hidden: Path, bundle: Path, tmp_path: Path, tiny: Config, quiet: Events
) -> None:
    result = infer(hidden, tmp_path / "out", [bundle], tiny.infer, quiet, Clock(limit_s=0.001))
    frame = submission(tmp_path / "out", hidden)
    assert result["out_of_time"] == len(read_test(hidden / "test.csv")) - result["scored"] > 0
    assert set(frame["cancer"]) <= {0, 1}


def test_a_stopped_run_resumes(hidden: Path, bundle: Path, tmp_path: Path, tiny: Config, quiet: Events) -> None:
    """What the first run scored is not decoded again, and the end is that of an undisturbed run."""
    whole = infer(hidden, tmp_path / "whole", [bundle], tiny.infer, quiet, Clock())
    infer(hidden, tmp_path / "out", [bundle], tiny.infer, quiet, Clock(limit_s=0.001))
    done = set(pd.read_csv(tmp_path / "out" / "image_scores.csv", dtype=str)["image_id"])
    for image_id, path in find_competition(hidden).files("test", read_test(hidden / "test.csv")):
        if image_id in done:
            path.unlink()
    result = infer(hidden, tmp_path / "out", [bundle], tiny.infer, quiet, Clock())
    assert done
    assert result["scored"] == whole["scored"]
    for name in ("submission.csv", "failures.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_killed_run_leaves_a_valid_submission_and_resumes(
    hidden: Path, lite_bundle: Path, tmp_path: Path, tiny_lite: Config, quiet: Events
) -> None:
    """The prior at first; SIGKILL once some images are scored: not scored again, and the end is that of a whole run."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    code = (
        "import sys, time; from rsna_kit.recipes import infer; from rsna_kit import cli; infer.SAVE_EVERY_S = 0\n"
        "save = infer._Scoring.write\n"
        "def slowly(*arguments): time.sleep(0.2); return save(*arguments)\n"
        "infer._Scoring.write = slowly\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    arguments = ["infer", hidden, out, "--bundle", lite_bundle, "--set", "infer.batch_size=4"]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (out / "submission.csv").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    assert set(submission(out, hidden)["cancer"]) == {0.0211676964}
    while not (out / "image_scores.csv").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    scored = pd.read_csv(out / "image_scores.csv")
    assert 0 < len(scored) < len(read_test(hidden / "test.csv"))
    submission(out, hidden)
    command = [sys.executable, "-m", "rsna_kit"]
    resumed = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    assert f"resuming: {len(scored)} images are done" in resumed.stderr
    infer(hidden, whole, [lite_bundle], replace(tiny_lite.infer, batch_size=4), quiet, Clock())
    assert (out / "submission.csv").read_bytes() == (whole / "submission.csv").read_bytes()


def test_bundles_of_other_images_are_refused_together(
    hidden: Path, bundle: Path, tmp_path: Path, tiny: Config, quiet: Events
) -> None:
    from rsna_kit.models.network import build_classifier
    from rsna_kit.training.export import write_bundle

    other = replace(tiny, image=replace(tiny.image, margin=0.2))
    write_bundle(tmp_path / "other", build_classifier(tiny.model, tiny.image), other, 1, 0.5, {}, "none")
    with pytest.raises(BundleError, match="share one image section"):
        infer(hidden, tmp_path / "out", [bundle, tmp_path / "other"], tiny.infer, quiet, Clock())
    assert set(submission(tmp_path / "out", hidden)["cancer"]) == {PRIOR}


def test_a_damaged_bundle_is_refused_by_name(
    hidden: Path, bundle: Path, tmp_path: Path, tiny: Config, quiet: Events
) -> None:
    shutil.copytree(bundle, tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.weights.h5"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.weights\.h5"):
        infer(hidden, tmp_path / "out", [tmp_path / "damaged"], tiny.infer, quiet, Clock())
    with pytest.raises(BundleError, match="no bundle"):
        infer(hidden, tmp_path / "out", [tmp_path / "nowhere"], tiny.infer, quiet, Clock())


def test_a_submission_that_stands_is_not_thrown_back_to_the_prior(
    hidden: Path, tmp_path: Path, tiny: Config, quiet: Events
) -> None:
    sample = read_sample(hidden / "sample_submission.csv")
    write_submission(sample.assign(cancer=1), sample, tmp_path / "out" / "submission.csv")
    with pytest.raises(BundleError, match="no bundle"):
        infer(hidden, tmp_path / "out", [tmp_path / "nowhere"], tiny.infer, quiet, Clock())
    assert set(submission(tmp_path / "out", hidden)["cancer"]) == {1}


def test_a_bundle_found_twice_counts_once(bundle: Path, quiet: Events) -> None:
    from rsna_kit.models.members import open_members

    assert [member.bundle.path for member in open_members([bundle.parent, bundle], quiet.say).members] == [bundle]


def test_a_test_table_that_cannot_be_used_leaves_the_prior(
    hidden: Path, bundle: Path, tmp_path: Path, tiny: Config, quiet: Events
) -> None:
    table = pd.read_csv(hidden / "test.csv", dtype=str)
    table.loc[0, "laterality"] = "B"
    table.to_csv(hidden / "test.csv", index=False)
    with pytest.raises(TableError, match="laterality"):
        infer(hidden, tmp_path / "out", [bundle], tiny.infer, quiet, Clock())
    assert set(submission(tmp_path / "out", hidden)["cancer"]) == {PRIOR}


def test_tables_that_disagree_are_refused_before_work(
    hidden: Path, bundle: Path, tmp_path: Path, tiny: Config, quiet: Events
) -> None:
    sample = pd.read_csv(hidden / "sample_submission.csv")
    sample.iloc[1:].to_csv(hidden / "sample_submission.csv", index=False)
    with pytest.raises(TableError, match=sample["prediction_id"].iloc[0]):
        infer(hidden, tmp_path / "out", [bundle], tiny.infer, quiet, Clock())


def test_prepare_and_infer_show_the_model_the_same_bytes(
    phantom: Path, bundle: Path, tmp_path: Path, tiny: Config, quiet: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training images, given as a test set: what infer scores is what prepare has stored."""
    from rsna_kit.data.shards import open_prepared, read_picture
    from rsna_kit.models.ensemble import Ensemble
    from rsna_kit.recipes.prepare import prepare

    prepare(phantom, tmp_path / "prepared", tiny, quiet)
    competition = tmp_path / "competition"
    competition.mkdir()
    table = pd.read_csv(phantom / "train.csv", dtype=str)
    table["prediction_id"] = table["patient_id"] + "_" + table["laterality"]
    table[pd.read_csv(phantom / "hidden" / "test.csv").columns].to_csv(competition / "test.csv", index=False)
    (competition / "test_images").symlink_to(phantom / "train_images")
    scored: list[np.ndarray] = []
    score = Ensemble.score

    def note(self: Ensemble, images: np.ndarray) -> np.ndarray:
        scored.extend(images[..., 0])
        return score(self, images)

    monkeypatch.setattr(Ensemble, "score", note)
    assert infer(competition, tmp_path / "out", [bundle], tiny.infer, quiet, Clock())["ok"]
    prepared = open_prepared(tmp_path / "prepared")
    assert len(scored) == len(table)
    for image_id, image in zip(table["image_id"], scored, strict=True):
        assert np.array_equal(read_picture(prepared, image_id), image)


def test_exact_decodes_every_pixel_and_says_so(
    hidden: Path, bundle: Path, tmp_path: Path, tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        "rsna_kit.imaging.stream.read_image",
        lambda path, image_id, image, *rest: asked.append(image.decode) or read_image(path, image_id, image, *rest),
    )
    said = io.StringIO()
    infer(hidden, tmp_path / "out", [bundle], tiny.infer, Events(stream=said), Clock(), exact=True)
    assert set(asked) == {"exact"}
    assert "--exact: every pixel is decoded, though the bundles were trained on reduced JPEG 2000" in said.getvalue()


def test_a_run_that_is_short_of_time_asks_for_coarser_images(
    hidden: Path, bundle: Path, tmp_path: Path, tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that always says decoding is too slow (when it says so: tests/test_imaging_pace.py)."""
    from rsna_kit.imaging.pace import Pace

    class Hasty(Pace):
        def update(self, done: int, waited_s: float) -> int:
            given_up = self._give_up(1.0, 1.0, done)
            if given_up:
                self._say(given_up)
            return self.coarser

    monkeypatch.setattr("rsna_kit.imaging.pace.Pace", Hasty)
    coarser = []

    def note(path: Path, image_id: str, image: ImageConfig, trust: Trust, more: int) -> Rendered:
        coarser.append(more)
        return read_image(path, image_id, image, trust, more)

    monkeypatch.setattr("rsna_kit.imaging.stream.read_image", note)
    said = io.StringIO()
    settings, decode = replace(tiny.infer, batch_size=2), DecodeConfig(workers=1)
    result = infer(hidden, tmp_path / "out", [bundle], settings, Events(stream=said), Clock(), decode=decode)
    assert result["coarser"] == 2
    assert result["given_up"] == []
    assert said.getvalue().count("times coarser from here on") == 2
    assert coarser[0] == 0
    assert max(coarser) > 0
    submission(tmp_path / "out", hidden)


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory, tiny: Config) -> Path:
    """An untrained breast-level network as a bundle, its attention loud enough to tell it from a mean."""
    import keras

    from rsna_kit.models.network import build_network
    from rsna_kit.training.export import write_bundle

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
    from rsna_kit.recipes.blend import write_list

    folder = tmp_path / "blend"
    shutil.copytree(bundle, folder / "bundles" / "images")
    shutil.copytree(views, folder / "bundles" / "views")
    write_list(folder, {"bundles/images": 0.25, "bundles/views": 0.75}, "flip", 0.4, {})
    return folder


def test_a_list_is_scored_as_it_says(
    hidden: Path, listed: Path, bundle: Path, views: Path, tmp_path: Path, tiny: Config, quiet: Events
) -> None:
    """Each picture read, flipped and scored alone; breasts pooled by hand: mean of one, attention of the other."""
    result = infer(hidden, tmp_path / "out", [listed], tiny.infer, quiet, Clock())
    assert (result["weights"], result["tta"], result["threshold"]) == ([0.25, 0.75], "flip", 0.4)
    test = read_test(hidden / "test.csv")
    models = [load_model(open_bundle(path)) for path in (bundle, views)]
    rows = []
    for image_id, path in find_competition(hidden).files("test", test):
        picture = read_image(path, image_id, tiny.image).image[None, ..., None]
        outputs = [(np.asarray(m(picture), np.float64)[0] + np.asarray(m(picture[:, ::-1]))[0]) / 2 for m in models]
        rows.append((1 / (1 + np.exp(-outputs[0][0])), *outputs[1]))
    table = pd.DataFrame(rows, columns=["score", "logit", "attention"]).assign(breast=test["prediction_id"])
    wanted = {}
    for breast, images in table.groupby("breast"):
        share = np.exp(images["attention"]) / np.exp(images["attention"]).sum()
        pooled = 1 / (1 + np.exp(-(share * images["logit"]).sum()))
        assert len(images) == 1 or abs(pooled - (1 / (1 + np.exp(-images["logit"]))).mean()) > 1e-6
        wanted[breast] = 0.25 * images["score"].mean() + 0.75 * pooled
    got = pd.read_csv(tmp_path / "out" / "scores.csv").set_index("prediction_id")["score"]
    np.testing.assert_allclose(got, [wanted[breast] for breast in got.index], atol=1e-5)
    called = submission(tmp_path / "out", hidden).set_index("prediction_id")["cancer"]
    assert (called == (got >= 0.4)).all()
    columns = list(pd.read_csv(tmp_path / "out" / "image_scores.csv").columns)
    assert columns == ["image_id", "score", "score_1", "attention_1"]


def test_other_weights_or_tta_start_from_nothing(
    hidden: Path, bundle: Path, tmp_path: Path, tiny: Config, quiet: Events
) -> None:
    said = io.StringIO()
    infer(hidden, tmp_path / "out", [bundle], tiny.infer, quiet, Clock())
    plain = pd.read_csv(tmp_path / "out" / "image_scores.csv")["score"]
    flipped = replace(tiny.infer, tta="flip")
    result = infer(hidden, tmp_path / "out", [bundle], flipped, Events(stream=said), Clock())
    assert "resuming" not in said.getvalue()
    assert result["tta"] == "flip"
    assert not np.array_equal(plain, pd.read_csv(tmp_path / "out" / "image_scores.csv")["score"])


def test_a_bundle_beside_a_list_is_refused(
    hidden: Path, listed: Path, bundle: Path, tmp_path: Path, tiny: Config, quiet: Events
) -> None:
    """Copies of what the list names may lie about, anything else would be scored by nobody knows what weight."""
    from rsna_kit.models.members import open_members

    assert open_members([listed, listed / "bundles" / "images", bundle], quiet.say).source == listed / "ensemble.json"
    shutil.copytree(bundle, tmp_path / "other")
    set_threshold(tmp_path / "other", 0.9, "another")
    with pytest.raises(BundleError, match=r"ensemble.json does not name .*other\. Give the list alone"):
        infer(hidden, tmp_path / "out", [tmp_path], tiny.infer, quiet, Clock())


def test_two_lists_are_refused_and_two_copies_of_one_are_not(listed: Path, tmp_path: Path, quiet: Events) -> None:
    from rsna_kit.models.members import open_members
    from rsna_kit.recipes.blend import write_list

    second = Path(shutil.copytree(listed, tmp_path / "second"))
    assert open_members([listed, second], quiet.say).threshold == 0.4
    write_list(second, {"bundles/images": 1.0}, "none", 0.5, {})
    with pytest.raises(BundleError, match=r"2 lists found: .*blend/ensemble.json, .*second/ensemble.json\. Give one"):
        open_members([listed, second], quiet.say)


def test_what_the_models_give_up_is_done_without_and_recorded(
    hidden: Path, listed: Path, tmp_path: Path, tiny: Config, quiet: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that always says the models are too slow (when it says so: tests/test_imaging_pace.py)."""
    from rsna_kit.imaging.pace import Pace
    from rsna_kit.models.ensemble import Ensemble

    class Hasty(Pace):
        def update(self, done: int, waited_s: float) -> int:
            self._give_up(0.0, 1.0, done)
            return self.coarser

    monkeypatch.setattr("rsna_kit.imaging.pace.Pace", Hasty)
    score, flips = Ensemble.score, list[bool]()

    def note(self: Ensemble, images: np.ndarray) -> np.ndarray:
        flips.append(self._flip)
        return score(self, images)

    monkeypatch.setattr(Ensemble, "score", note)
    settings = replace(tiny.infer, batch_size=4)
    result = infer(hidden, tmp_path / "out", [listed], settings, quiet, Clock())
    assert result["given_up"] == [
        {"given_up": "TTA", "after_images": 4},
        {"given_up": str(listed / "bundles" / "images"), "after_images": 8},
    ]
    assert flips[:2] == [True, False]
    assert result["ok"]
    scores = pd.read_csv(tmp_path / "out" / "image_scores.csv")
    assert scores["score"].isna().tolist() == [row >= 8 for row in range(len(scores))]
    assert scores["score_1"].notna().all()
    submission(tmp_path / "out", hidden)


def test_a_resumed_run_says_what_the_first_one_gave_up(
    hidden: Path, listed: Path, tmp_path: Path, tiny: Config, quiet: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images keep scores of fewer members: nobody may take the whole for the work of all."""
    from rsna_kit.imaging.pace import Pace

    class Hasty(Pace):
        def update(self, done: int, waited_s: float) -> int:
            self._give_up(0.0, 1.0, done)
            if done >= 8:
                raise KeyboardInterrupt
            return 0

    settings = replace(tiny.infer, batch_size=4)
    monkeypatch.setattr(infer_module, "SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr("rsna_kit.imaging.pace.Pace", Hasty)
        with pytest.raises(KeyboardInterrupt):
            infer(hidden, tmp_path / "out", [listed], settings, quiet, Clock())
    said = io.StringIO()
    result = infer(hidden, tmp_path / "out", [listed], settings, Events(stream=said), Clock())
    assert "resuming: 4 images are done\nthe run before gave something up" in said.getvalue()
    assert (result["coarser"], result["given_up"]) == (0, [{"given_up": "TTA", "after_images": 4}])


def test_a_folder_without_a_bundle_is_refused_beside_a_good_one(bundle: Path, tmp_path: Path, quiet: Events) -> None:
    from rsna_kit.models.members import open_members

    with pytest.raises(BundleError, match=r"no bundle \(a folder with metadata.json\) found in: .*typo\. Give folders"):
        open_members([bundle, tmp_path / "typo"], quiet.say)


def test_the_first_batch_says_nothing_about_the_pace(
    hidden: Path, bundle: Path, tmp_path: Path, tiny: Config, quiet: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The networks are traced in it, which may take as long as a thousand images."""
    from rsna_kit.imaging.pace import Pace

    begun = list[int]()
    monkeypatch.setattr(Pace, "begin", lambda self, done, waited_s: begun.append(done))
    monkeypatch.setattr(Pace, "update", lambda self, done, waited_s: 0)
    infer(hidden, tmp_path / "out", [bundle], replace(tiny.infer, batch_size=4), quiet, Clock())
    assert begun == [0, 4]


def test_a_runtime_that_is_not_installed_leaves_the_prior(
    hidden: Path, bundle: Path, tmp_path: Path, tiny: Config, quiet: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"rsna-kit\[runtimes\]"):
        infer(hidden, tmp_path / "out", [bundle], replace(tiny.infer, runtime="openvino"), quiet, Clock())
    assert set(submission(tmp_path / "out", hidden)["cancer"]) == {PRIOR}


def test_infer_decodes_in_its_own_process(
    hidden: Path, bundle: Path, tmp_path: Path, tiny: Config, quiet: Events
) -> None:
    with pytest.raises(UsageError, match=r"decode\.backend: got 'dask', infer decodes in threads"):
        infer(hidden, tmp_path, [bundle], tiny.infer, quiet, Clock(), decode=DecodeConfig(backend="dask"))
