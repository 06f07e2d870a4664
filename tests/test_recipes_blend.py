"""blend on folders as train writes them: an honest comparison, one list, and infer takes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsna_kit.config import Config, InferConfig
from rsna_kit.models.bundle import open_bundle
from rsna_kit.models.members import open_list
from rsna_kit.recipes.blend import blend
from rsna_kit.recipes.infer import infer
from rsna_kit.runtime.clock import Clock
from rsna_kit.runtime.errors import BundleError, TableError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import sha256_file
from rsna_kit.scoring.blend import blend_out_of_fold, choose_weights
from rsna_kit.scoring.breasts import Calibration
from rsna_kit.scoring.calibration import calibrate
from rsna_kit.scoring.metrics import measure
from rsna_kit.scoring.predictions import read_predictions
from rsna_kit.scoring.threshold import choose_threshold
from rsna_lab.cli import main

pytestmark = pytest.mark.tf

PATIENTS, FOLDS = 120, 2
TRUTH = (np.random.default_rng(1).random((PATIENTS, 2)) < 0.2).astype(int)


def oof(skill: float, seed: int) -> pd.DataFrame:
    """Two images of each breast; `skill` is how far cancers lie above the rest, the noise is the model's own."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(PATIENTS):
        for side, laterality in enumerate("LR"):
            logit = skill * TRUTH[patient, side] + rng.normal() - 1
            for view in ("CC", "MLO"):
                rows.append(
                    {
                        "image_id": f"{patient}{side}{view}",
                        "prediction_id": f"{patient}_{laterality}",
                        "patient_id": str(patient),
                        "laterality": laterality,
                        "view": view,
                        "cancer": TRUTH[patient, side],
                        "fold": patient % FOLDS,
                        "score": 1 / (1 + np.exp(-logit - 0.1 * rng.normal())),
                    }
                )
    return pd.DataFrame(rows)


def trained(folder: Path, bundle: Path, skill: float, seed: int) -> Path:
    """What train leaves: out-of-fold scores and a bundle for each fold."""
    folder.mkdir(parents=True)
    oof(skill, seed).to_csv(folder / "oof.csv", index=False)
    for fold in range(FOLDS):
        copy = folder / "bundles" / f"fold{fold}"
        shutil.copytree(bundle, copy)
        with open(copy / "model.weights.h5", "ab") as file:
            file.write(f"{folder} {fold}".encode())  # other weights, as far as anyone can tell by their checksum
        metadata = json.loads((copy / "metadata.json").read_text())
        metadata |= {"fold": fold}
        metadata["sha256"]["model.weights.h5"] = sha256_file(copy / "model.weights.h5")
        (copy / "metadata.json").write_text(json.dumps(metadata))
    return folder


@pytest.fixture
def models(bundle: Path, tmp_path: Path) -> list[Path]:
    """A good model, a middling one, and one that knows nothing."""
    return [
        trained(tmp_path / name, bundle, skill, seed)
        for seed, (name, skill) in enumerate((("good", 2.0), ("fair", 1.2), ("none", 0.0)))
    ]


def expected(models: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, breast scores of each model and folds, put together by hand."""
    tables = [pd.read_csv(folder / "oof.csv").groupby("prediction_id", sort=False) for folder in models]
    scores = np.stack([table["score"].mean() for table in tables], axis=1)
    return tables[0]["cancer"].max().to_numpy(), scores, tables[0]["fold"].first().to_numpy()


def test_chosen_weights_are_kept_where_they_beat_the_mean(models: list[Path], tmp_path: Path, quiet: Events) -> None:
    """oof.csv, threshold, calibration and the comparison are of scores by weights that the other folds chose."""
    out = tmp_path / "blend"
    result = blend(out, models, InferConfig(tta="flip"), quiet)
    labels, scores, folds = expected(models)
    honest, weights = blend_out_of_fold(labels, scores, folds), choose_weights(labels, scores)
    assert result["kept"] == "weighted"
    np.testing.assert_allclose(list(result["weights"].values()), weights)
    assert result["weights"]["good"] > result["weights"]["fair"] > result["weights"]["none"]

    members = open_list(out)
    got = {member.bundle.path.name: member.weight for member in members.members}
    shares = {folder.name: weight / FOLDS for folder, weight in zip(models, weights, strict=True) if weight > 0}
    assert got == pytest.approx({f"{name}-fold{k}": share for name, share in shares.items() for k in range(FOLDS)})
    assert (members.tta, members.threshold) == ("flip", choose_threshold(labels, honest).value)
    for member in members.members:
        name, fold = member.bundle.path.name.rsplit("-fold", 1)
        assert member.bundle.metadata == open_bundle(tmp_path / name / "bundles" / f"fold{fold}").metadata
    wanted = calibrate(labels, honest, folds)
    assert wanted is not None
    assert members.calibration == result["calibration"]
    assert result["calibration"]["slope"] == pytest.approx(wanted["slope"])
    assert result["calibration"]["how"]["log_loss"] == pytest.approx(wanted["how"]["log_loss"])

    table, gain = result["out_of_fold"], result["gain"]
    assert list(table) == ["good", "fair", "none", "plain mean", "weighted"]
    columns = {"good": scores[:, 0], "plain mean": scores.mean(axis=1), "weighted": honest}
    values = {name: measure("roc_auc", labels, column) for name, column in columns.items()}
    for name, value in values.items():
        assert table[name]["roc_auc"]["value"] == pytest.approx(value)
        assert table[name]["roc_auc"]["low"] < value < table[name]["roc_auc"]["high"]
    assert gain["value"] == pytest.approx(values["weighted"] - values["plain mean"])
    assert gain["low"] <= gain["value"] <= gain["high"]
    breasts = read_predictions(out / "oof.csv").set_index("prediction_id")["score"]
    np.testing.assert_allclose(breasts[oof(0, 0)["prediction_id"].unique()], honest)


def test_a_blend_is_a_model_of_another(models: list[Path], tmp_path: Path, quiet: Events) -> None:
    """Its networks keep their shares, and TTA is what its scores were made with."""
    first = blend(tmp_path / "first", models[:2], InferConfig(tta="flip"), quiet)
    second = blend(tmp_path / "second", [tmp_path / "first", models[2]], InferConfig(), quiet)
    members = open_list(tmp_path / "second")
    got = {member.bundle.path.name: member.weight for member in members.members}
    for name, weight in first["weights"].items():
        for fold in range(FOLDS):
            assert got[f"first-{name}-fold{fold}"] == pytest.approx(second["weights"]["first"] * weight / FOLDS)
    assert sum(got.values()) == pytest.approx(1)
    assert members.tta == second["tta"] == "flip"


def test_a_model_that_others_make_worse_is_kept_alone(bundle: Path, tmp_path: Path, quiet: Events) -> None:
    """Scores by a coin that the folds disagree about: any weight of it is luck."""
    good, worse = trained(tmp_path / "good", bundle, 3.0, 1), trained(tmp_path / "worse", bundle, 0.0, 2)
    scores = pd.read_csv(worse / "oof.csv")
    sign = np.where(scores["fold"] == 0, 1, -1) * (2 * scores["cancer"] - 1)
    scores.assign(score=0.5 + 0.4 * sign).to_csv(worse / "oof.csv", index=False)
    result = blend(tmp_path / "out", [good, worse], InferConfig(), quiet)
    assert (result["kept"], result["weights"]) == ("good", {"good": 1.0, "worse": 0.0})
    assert {member.weight for member in open_list(tmp_path / "out").members} == {1 / FOLDS}


def test_weights_that_do_not_beat_the_mean_are_not_kept(bundle: Path, tmp_path: Path, quiet: Events) -> None:
    """Two models of equal skill: what tips the scale is noise."""
    models = [trained(tmp_path / name, bundle, 1.0, seed) for name, seed in (("a", 12), ("b", 15))]
    labels, scores, folds = expected(models)
    assert measure("roc_auc", labels, blend_out_of_fold(labels, scores, folds)) <= measure(
        "roc_auc", labels, scores.mean(axis=1)
    )
    result = blend(tmp_path / "auto", models, InferConfig(), quiet)
    assert result["kept"] == "plain mean"
    assert list(result["weights"].values()) == [0.5, 0.5]
    assert result["threshold"]["value"] == pytest.approx(choose_threshold(labels, scores.mean(axis=1)).value)


def test_infer_takes_the_folder_as_it_is(
    phantom: Path, models: list[Path], tmp_path: Path, tiny: Config, quiet: Events
) -> None:
    result = blend(tmp_path / "blend", models[:2], InferConfig(), quiet)
    scored = infer(phantom / "hidden", tmp_path / "out", [tmp_path / "blend"], tiny.infer, quiet, Clock())
    assert scored["ok"]
    assert scored["threshold"] == result["threshold"]["value"]
    assert sum(scored["weights"]) == pytest.approx(1)
    breasts = pd.read_csv(tmp_path / "out" / "scores.csv")
    expected_probability = Calibration.from_dict(result["calibration"]).apply(breasts["score"])
    np.testing.assert_allclose(breasts["probability"], expected_probability, rtol=1e-12)
    assert {Path(path).parent for path in scored["bundles"]} == {tmp_path / "blend" / "bundles"}


def test_the_verb_prints_the_list(models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["blend", str(tmp_path / "blend"), *(word for path in models for word in ("--model", str(path)))]
    assert main([*arguments, "--set", "infer.tta=flip"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert (result["kept"], result["tta"]) == ("weighted", "flip")
    lines = {line.split(":")[0].strip() for line in printed.err.splitlines()}
    assert {"good", "fair", "none", "plain mean", "weighted"} <= lines


def test_a_killed_blend_leaves_no_list_and_can_be_run_again(
    models: list[Path], tmp_path: Path, quiet: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "blend"
    blend(out, models, InferConfig(), quiet)
    with monkeypatch.context() as patch:
        patch.setattr("rsna_kit.recipes.blend.write_bytes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            blend(out, models[:2], InferConfig(), quiet)
    with pytest.raises(BundleError, match=r"ensemble.json: got format version None.*Run rsna-kit blend again"):
        open_list(out)
    assert blend(out, models[:2], InferConfig(), quiet)["ok"]


def test_folders_of_one_name_are_told_apart(bundle: Path, tmp_path: Path, quiet: Events) -> None:
    models = [trained(tmp_path / run / "model", bundle, skill, 3) for run, skill in (("a", 1.0), ("b", 1.0))]
    result = blend(tmp_path / "blend", models, InferConfig(), quiet)
    assert result["models"] == {"a-model": str(models[0]), "b-model": str(models[1])}
    names = sorted(path.name for path in (tmp_path / "blend" / "bundles").iterdir())
    assert names == ["a-model-fold0", "a-model-fold1", "b-model-fold0", "b-model-fold1"]
    clash = trained(tmp_path / "weighted", bundle, 1.0, 4)
    with pytest.raises(UsageError, match=r"the names model, weighted clash .* Rename one"):
        blend(tmp_path / "blend", [models[0], clash], InferConfig(), quiet)


def test_a_model_beside_its_copy_is_refused(models: list[Path], tmp_path: Path, quiet: Events) -> None:
    """infer would refuse the list: the same weights twice."""
    copy = Path(shutil.copytree(models[0], tmp_path / "copy"))
    with pytest.raises(BundleError, match=r"copy/bundles/fold0 and .*good/bundles/fold0 hold the same weights"):
        blend(tmp_path / "blend", [models[0], copy], InferConfig(), quiet)
    assert not (tmp_path / "blend").exists()


def test_what_cannot_be_blended_is_refused_before_anything_is_written(
    models: list[Path], tmp_path: Path, quiet: Events
) -> None:
    out = tmp_path / "blend"
    for given in ([models[0]], [models[0], models[0]]):
        with pytest.raises(UsageError, match=r"--model: got .*good.*, expected two or more different folders"):
            blend(out, given, InferConfig(), quiet)
    with pytest.raises(UsageError, match="good holds bundles that blend did not write"):
        blend(models[0], models, InferConfig(), quiet)
    other = oof(1.2, 1).assign(fold=0)
    other.to_csv(models[1] / "oof.csv", index=False)
    with pytest.raises(
        TableError,
        match=r"model fair: .* are not those of the first model",
    ):
        blend(out, models, InferConfig(), quiet)
    other.drop(columns="fold").to_csv(models[1] / "oof.csv", index=False)
    with pytest.raises(TableError, match=r"fair/oof.csv: no column fold"):
        blend(out, models, InferConfig(), quiet)
    (models[1] / "oof.csv").unlink()
    with pytest.raises(TableError, match=r"fair/oof.csv: no such file"):
        blend(out, models, InferConfig(), quiet)
    assert not out.exists()


def test_a_fold_without_its_bundle_is_refused_by_name(models: list[Path], tmp_path: Path, quiet: Events) -> None:
    bundles = models[1] / "bundles"
    shutil.rmtree(bundles / "fold1")
    with pytest.raises(BundleError, match=r"fair/bundles/fold1/metadata.json: no such file"):
        blend(tmp_path / "blend", models, InferConfig(), quiet)
    shutil.copytree(bundles / "fold0", bundles / "fold1")
    with pytest.raises(BundleError, match=r"fair/bundles/fold1 is of fold 0, its place is that of fold 1"):
        blend(tmp_path / "blend", models, InferConfig(), quiet)
