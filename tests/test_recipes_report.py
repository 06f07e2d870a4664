"""report: a run, or files of scores, with what is known of their breasts → one page that is whole and honest."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from rsna_kit.competition.folds import assign_folds
from rsna_kit.config import Config, to_dict, with_overrides
from rsna_kit.data.shards import open_prepared
from rsna_kit.models.network import build_network
from rsna_kit.recipes.prepare import prepare
from rsna_kit.runtime.errors import ShardError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import read_csv, read_json, write_json
from rsna_kit.training.export import set_threshold, write_bundle
from rsna_lab.recipes.report import PAGE, report

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf


@pytest.fixture(scope="module")
def prepared(phantom: Path, tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    prepare(phantom, out, tiny, Events(stream=io.StringIO()))
    return out


@pytest.fixture(scope="module")
def made(prepared: Path, tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training of a small CVAE leaves, its scores made up; of its two folds only the first has a bundle."""
    run = tmp_path_factory.mktemp("runs") / "run"
    table = open_prepared(prepared).table
    table["fold"] = assign_folds(table, 2, seed=1)
    # In each fold one cancer is found, one missed, one breast is called in error, and there are others.
    place = table.groupby("fold")["prediction_id"].transform(lambda ids: pd.factorize(ids)[0]).to_numpy()
    table["cancer"] = (place < 2).astype(int)
    table["score"] = np.array([0.9, 0.1, 0.8, 0.2])[np.minimum(place, 3)] + 0.001 * np.arange(len(table))
    columns = ["image_id", "prediction_id", "patient_id", "laterality", "view", "cancer", "fold", "score"]
    config = with_overrides(tiny, ["model.kind=cvae", "cvae.filters=2", "cvae.latent=2"])
    bundle = run / "bundles" / "fold0"
    write_bundle(bundle, build_network(config, config.image), config, 0, None, {}, "none")
    set_threshold(bundle, 0.5, "for tests")
    table[columns].to_csv(run / "oof.csv", index=False)
    write_json(run / "config.json", to_dict(config))
    (run / "fold0").mkdir()
    cv2.imwrite(str(run / "fold0" / "curves.png"), np.full((8, 24), 200, np.uint8))
    return run


@pytest.fixture(scope="module")
def whole(
    made: Path, prepared: Path, phantom: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str, pd.DataFrame]:
    """The page of the run, of the same scores as another training's file and of a hidden test; what was said meanwhile;
    and the test's truth."""
    out, talk = tmp_path_factory.mktemp("report"), io.StringIO()
    shutil.copy(made / "oof.csv", out / "file.csv")
    truth = pd.read_csv(phantom / "hidden" / "truth.csv", dtype=str)
    truth[["prediction_id"]].assign(score=np.linspace(0, 1, len(truth))).to_csv(out / "scores.csv", index=False)
    files = [made, out / "file.csv", out / "scores.csv"]
    given = {"prepared": prepared, "competition": phantom / "hidden", "truth": phantom / "hidden" / "truth.csv"}
    result = report(files, out, Events(stream=talk), **given)  # type: ignore[arg-type]
    assert result["report"] == str(out / PAGE)
    assert read_json(out / "scores.json") == {name: value for name, value in result.items() if name != "report"}
    assert len({summary["threshold"]["value"] for summary in result["files"].values()}) == 1
    return (out / PAGE).read_text(encoding="utf-8"), talk.getvalue(), truth


def titles(page: str) -> list[str]:
    return re.findall(r"<h2[^>]*>(?:<small>.*?</small> )?(.*?)</h2>", page)


def cards(page: str) -> dict[str, list[str]]:
    """By breast, in lower case, the cards of the page."""
    found: dict[str, list[str]] = {}
    for card in page.split("<li data-id=")[1:]:
        found.setdefault(card.split('"')[1], []).append(card.split("</li>")[0])
    return found


def test_the_page_of_a_run_and_a_test_has_everything(whole: tuple[str, str, pd.DataFrame]) -> None:
    page = whole[0]
    assert titles(page) == [
        *["In short", "Curves", "Operating point", "Subgroups"] * 3,
        *["Cases", "Training", "Where this comes from"],
    ]
    assert len(page.encode()) < 5_000_000
    assert "fold 0<br><small>small group" in page
    assert "with each fold called by the threshold of the other folds" in page
    assert 'src="data:image/png;base64,' in page.split("Training</h2>")[1]


def test_every_breast_has_its_card_with_its_views_and_facts(
    whole: tuple[str, str, pd.DataFrame], prepared: Path, made: Path
) -> None:
    page, _, truth = whole
    table, oof = open_prepared(prepared).table, read_csv(made / "oof.csv", [])
    found = cards(page)
    assert set(found) == set(table["prediction_id"].str.lower()) | set(truth["prediction_id"].str.lower())
    for breast, images in table.groupby("prediction_id"):
        card = found[breast.lower()][0]
        assert card.count('alt="Mammogram') == min(len(images), 4)
        assert f'data-machine="{images["machine_id"].iloc[0]}"' in card
        scores = oof[oof["prediction_id"] == breast]
        assert f'data-fold="{scores["fold"].iloc[0]}"' in card
        told = re.search(r'data-score="(.*?)"', card)
        assert told is not None
        assert float(told[1]) == pytest.approx(scores["score"].mean(), abs=1e-5)
        for view, score in zip(scores["view"], scores["score"], strict=True):
            assert f"<figcaption>{view} {score:.2f}</figcaption>" in card
    for breast in truth["prediction_id"]:  # from its DICOM files
        (card,) = found[breast.lower()]
        assert "data:image/webp" in card
        assert "/scores.csv" in card.split('data-predictions="')[1].split('"')[0]


def test_maps_are_drawn_by_the_networks_that_gave_the_score(whole: tuple[str, str, pd.DataFrame], made: Path) -> None:
    """Fold 1 has no bundle: its pictures go without, though there is a network that has seen them. Nor are the scores
    of a file with folds explained, which another training gave."""
    page, talk, truth = whole
    assert "maps: no bundle of fold 1" in talk
    fold = pd.read_csv(made / "oof.csv").groupby("prediction_id")["fold"].first().rename(str.lower)
    explained = {"run": set(), "scores": set(), "file": set()}  # type: dict[str, set[str]]
    for breast, several in cards(page).items():
        for card in several:
            plain, mapped = (card.count(f'alt="{kind}') for kind in ("Mammogram", "Map over the mammogram"))
            assert mapped in (0, plain)
            source = re.search(r'data-predictions="[^"]*?(scores|file)\.csv"', card)
            if mapped:
                explained[source[1] if source else "run"].add(breast)
                assert "<figcaption>reconstruction errors</figcaption>" in card
    assert {fold[breast] for breast in explained["run"]} == {0}
    assert explained["file"] == set()
    assert explained["scores"] <= set(truth["prediction_id"].str.lower())
    assert len(explained["scores"]) > 2


def test_where_the_page_comes_from_is_told(whole: tuple[str, str, pd.DataFrame], made: Path, prepared: Path) -> None:
    told = whole[0].split("Where this comes from</h2>")[1]
    for fact in (
        str(made / "oof.csv"),
        str(prepared),
        "<dt>commit</dt>",
        "<dt>packages numpy</dt>",
        "<dt>fold0 image_fingerprint</dt>",
        "<dt>image height</dt><dd>64</dd>",
    ):
        assert fact in told


def test_two_runs_and_what_is_missing_or_damaged_costs_itself_only(made: Path, prepared: Path, tmp_path: Path) -> None:
    """A run without bundles has no maps, a damaged picture is said to be none."""
    other, damaged, talk = tmp_path / "other", tmp_path / "prepared", io.StringIO()
    shutil.copytree(made, other)
    shutil.rmtree(other / "bundles")
    shutil.copytree(prepared, damaged)
    entry = next(iter(open_prepared(damaged).index.values()))
    with open(damaged / entry.shard, "r+b") as file:
        file.seek(entry.offset)
        file.write(b"\0" * entry.length)
    report([made, other], tmp_path / "out", Events(stream=talk), prepared=damaged)
    page = (tmp_path / "out" / PAGE).read_text(encoding="utf-8")
    assert "Validation report of run and other" in page
    assert "no maps: no bundle" in talk.getvalue()
    mapped = {"run": 0, "other": 0}
    for card in (card for several in cards(page).values() for card in several):
        mapped[card.split('data-predictions="')[1].split("/")[0]] += "Map over" in card
    assert mapped["run"] > 0 == mapped["other"]
    assert titles(page).count("Training") == 2
    assert page.count('<p class="soft">no picture</p>') == 2  # one of each run


def test_scores_alone_make_a_page_and_hostile_texts_stay_text(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>'
    rows = pd.DataFrame(
        {
            "prediction_id": [f"{n}{evil}_L" for n in range(20)],
            "score": np.linspace(0, 1, 20),
            "cancer": [0, 1] * 10,
            "density": [evil, "B"] * 10,
            "machine_id": [evil, "7"] * 10,
        }
    )
    path = tmp_path / "<img src=x>.csv"
    rows.to_csv(path, index=False)
    result = report([path], tmp_path / "out", Events(stream=io.StringIO()), threshold=0.4)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["threshold"] == 0.4
    page = (tmp_path / "out" / PAGE).read_text(encoding="utf-8")
    assert titles(page) == ["In short", "Curves", "Operating point", "Subgroups", "Cases", "Where this comes from"]
    assert page.count("<li data-id") == 20
    assert page.count("<script>") == 1  # the page's own
    assert "<img" not in page
    assert page.count("&lt;script&gt;alert(1)") > 60


def test_however_many_breasts_the_page_stays_under_five_megabytes(tmp_path: Path) -> None:
    """24,000 breasts, as many as the competition's."""
    rng = np.random.default_rng(0)
    count = 24_000
    cancer = (rng.random(count) < 0.02).astype(int)
    names = [f"{n // 2}_{'LR'[n % 2]}" for n in range(count)]
    rows = pd.DataFrame({"prediction_id": names, "cancer": cancer})
    rows.assign(score=np.clip(rng.beta(1, 20, count) + 0.2 * cancer, 0, 1)).to_csv(tmp_path / "oof.csv", index=False)
    report([tmp_path / "oof.csv"], tmp_path, Events(stream=io.StringIO()))
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert len(page.encode()) < 5_000_000
    shown = re.search(r"<p>([\d,]+) of 24,000 breasts are shown here", page)
    assert shown is not None
    assert int(shown[1].replace(",", "")) == len(cards(page)) > 5000
    assert len(re.findall(r'<li [^>]*data-label="1"', page)) == cancer.sum()


def test_pictures_of_other_breasts_are_refused(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "oof.csv").write_text("prediction_id,score,cancer\n1_L,0.1,0\n2_L,0.8,1\n")
    with pytest.raises(UsageError, match=rf"--prepared {prepared}: none of its breasts"):
        report([tmp_path / "oof.csv"], tmp_path, Events(stream=io.StringIO()), prepared=prepared)
    with pytest.raises(ShardError, match=r"no such file. Run prepare first"):
        report([tmp_path / "oof.csv"], tmp_path, Events(stream=io.StringIO()), prepared=tmp_path)
    assert not (tmp_path / PAGE).exists()
