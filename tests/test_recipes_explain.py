"""explain: the highest scores are drawn, what cannot be read costs nothing else, ids are checked."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from rsna_kit.competition.tables import read_train
from rsna_kit.config import DecodeConfig, InferConfig
from rsna_kit.runtime.errors import UsageError
from rsna_kit.runtime.events import Events
from rsna_lab.recipes.explain import explain

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf
SETTINGS = InferConfig(batch_size=8, max_failure_share=0.5)


@pytest.fixture(scope="module")
def competition(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training pictures, one of them damaged."""
    root = tmp_path_factory.mktemp("explain") / "competition"
    lines = (phantom / "train.csv").read_text().splitlines()[:9]
    root.mkdir()
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    table = read_train(root / "train.csv")
    for row in table.itertuples():
        path = root / "train_images" / row.patient_id / f"{row.image_id}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(phantom / path.relative_to(root), path)
    path.write_bytes(b"no DICOM")
    return root


def run(competition: Path, out: Path, bundle: Path, events: Events, **options: object) -> dict[str, object]:
    decode = DecodeConfig(workers=1)
    return explain(competition, out, [bundle], SETTINGS, events, decode=decode, **options)  # type: ignore[arg-type]


def test_the_highest_scores_are_drawn(competition: Path, bundle: Path, quiet: Events, tmp_path: Path) -> None:
    result = run(competition, tmp_path, bundle, quiet, top=3)
    assert (result["ok"], result["split"], result["method"]) == (True, "train", "Grad-CAM")
    assert (result["scored"], result["failed"], result["explained"]) == (7, 1, 3)
    table = pd.read_csv(tmp_path / "explain.csv", dtype={"image_id": str})
    assert table["score"].is_monotonic_decreasing
    truth = read_train(competition / "train.csv").set_index("image_id")["cancer"]
    assert table["cancer"].tolist() == truth[table["image_id"]].tolist()
    failed = pd.read_csv(tmp_path / "failures.csv", dtype=str)
    assert failed["image_id"].tolist() == [truth.index[-1]]
    for row in table.itertuples():
        heat = cv2.imread(str(tmp_path / "maps" / f"{row.image_id}.png"), cv2.IMREAD_UNCHANGED)
        assert (heat.dtype, heat.shape) == (np.uint16, (64, 32))
        assert heat.max() in (0, 65535)
        pair = cv2.imread(str(tmp_path / "pictures" / f"{row.image_id}.png"))
        assert pair.shape == (64, 2 * 32 + 4, 3)
        seen = pair[:, :32, 0].astype(float).mean(axis=0)
        left, right = seen[:16].mean(), seen[16:].mean()
        assert left > right if row.laterality == "L" else right > left  # as it was taken: the chest wall at its side
        if heat.max():
            assert row.top <= row.peak_row < row.bottom
            assert row.left <= row.peak_column < row.right
    page = (tmp_path / "index.html").read_text()
    assert page.count("<img") == 3
    assert "http" not in page.partition("<body>")[2]
    assert all(image_id in page for image_id in table["image_id"])


def test_pictures_that_are_asked_for_come_in_that_order(
    competition: Path, bundle: Path, quiet: Events, tmp_path: Path
) -> None:
    ids = read_train(competition / "train.csv")["image_id"].tolist()
    images = [ids[4], ids[1], ids[4], ids[-1]]
    result = run(competition, tmp_path / "out", bundle, quiet, images=images)
    assert [one["image_id"] for one in result["pictures"]] == [ids[4], ids[1]]  # type: ignore[attr-defined]
    assert (result["scored"], result["failed"]) == (2, 1)


def test_what_cannot_be_asked_is_refused(competition: Path, bundle: Path, quiet: Events, tmp_path: Path) -> None:
    known = read_train(competition / "train.csv")["image_id"][0]
    with pytest.raises(UsageError, match=f"Did you mean '{known}'"):
        run(competition, tmp_path, bundle, quiet, images=[known + "1"])
    with pytest.raises(UsageError, match="--top"):
        run(competition, tmp_path, bundle, quiet, top=0)
    assert not (tmp_path / "index.html").exists()
