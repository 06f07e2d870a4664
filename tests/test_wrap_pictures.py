"""Labelled pictures wrapped as a competition: pixels, patients and sides survive; bad input is refused in time."""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import dicomsdl
import numpy as np
import pandas as pd
import pydicom
import pytest
from realdata import realdata

from rsna_kit.competition.paths import find_competition
from rsna_kit.competition.tables import read_train
from rsna_kit.config import ImageConfig
from rsna_kit.imaging.render import read_image
from rsna_kit.runtime.errors import RsnaKitError, TableError
from rsna_kit.runtime.events import Events
from rsna_lab.phantom.dicom_file import JPEG2000, JPEG_LOSSLESS
from rsna_lab.phantom.tables import counts
from rsna_lab.phantom.wrap import read_labels, wrap_pictures

ROOT = Path(__file__).parent.parent
LABELS = """image_id,split,patient_id,laterality,view,cancer,breast_density,age
007,train,P_1,L,CC,1,2,61
b,train,P_1,L,MLO,1,2,61
c,train,P_1,R,CC,0,2,61
d,train,02,R,CC,0,,
e,test,x9,L,MLO,0,4,50
f,test,x9,R,MLO,1,4,50
"""


def silent() -> Events:
    return Events(stream=io.StringIO())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Six pictures in every format and depth, and their labels."""
    rng = np.random.default_rng(0)
    (tmp_path / "img").mkdir()
    (tmp_path / "labels.csv").write_text(LABELS)
    for name in ("007.png", "b.png", "c.pgm", "d.pgm", "e.PNG", "f.jpg"):
        dtype = np.uint16 if name[0] in "bd" else np.uint8
        values = rng.integers(0, np.iinfo(dtype).max + 1, (40, 31)).astype(dtype)
        encoded = cv2.imencode(Path(name).suffix.lower(), values)[1]
        (tmp_path / "img" / name).write_bytes(encoded.tobytes())
    return tmp_path


def wrap(source: Path, **options: object) -> Path:
    out = source / "out"
    wrap_pictures(source / "img", source / "labels.csv", out, events=silent(), **options)  # type: ignore[arg-type]
    return out


def picture(source: Path, image_id: str) -> np.ndarray:
    path = next(path for path in (source / "img").iterdir() if path.stem == image_id)
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert values is not None
    return values


def test_pixels_survive_and_two_decoders_agree(source: Path) -> None:
    out = wrap(source, split_column="split")
    files = sorted(out.rglob("*.dcm"))
    assert [path.stem for path in files] == ["e", "f", "d", "007", "b", "c"]
    for path in files:
        dataset, expected = pydicom.dcmread(path), picture(source, path.stem)
        dataset.pixel_array_options(decoding_plugin="gdcm")
        assert np.array_equal(dataset.pixel_array, expected)
        assert np.array_equal(dicomsdl.open(str(path)).pixelData(storedvalue=True), expected)
        assert dataset.BitsStored == 8 * expected.dtype.itemsize
        assert (dataset.BitsAllocated, dataset.PhotometricInterpretation) == (16, "MONOCHROME2")
        scale = float(1 << dataset.BitsStored)
        assert (dataset.WindowCenter, dataset.WindowWidth) == (scale / 2, scale)


def test_tables_keep_patients_sides_and_ids(source: Path) -> None:
    out = wrap(source, split_column="split")
    assert (out / "train.csv").read_text().splitlines() == [
        "site_id,patient_id,image_id,laterality,view,age,cancer,biopsy,invasive,BIRADS,implant,density,machine_id,"
        "difficult_negative_case",
        "1,P_1,007,L,CC,61.0,1,1,0,,0,B,1,False",
        "1,P_1,b,L,MLO,61.0,1,1,0,,0,B,1,False",
        "1,P_1,c,R,CC,61.0,0,0,0,,0,B,1,False",
        "2,02,d,R,CC,,0,0,0,,0,,2,False",
    ]
    assert (out / "hidden" / "truth.csv").read_text().splitlines() == [
        "prediction_id,patient_id,laterality,cancer,site_id,machine_id",
        "x9_L,x9,L,0,1,1",
        "x9_R,x9,R,1,1,1",
    ]
    sample = pd.read_csv(out / "hidden" / "sample_submission.csv")
    assert sample["prediction_id"].tolist() == ["x9_L", "x9_R"]
    assert not (out / "test.csv").exists()


def test_without_a_split_everything_is_training_and_a_patient_has_one_syntax(source: Path) -> None:
    out = wrap(source)
    assert sorted(path.name for path in out.iterdir()) == ["train.csv", "train_images", "wrapped.json"]
    assert len(pd.read_csv(out / "train.csv")) == 6
    syntaxes: dict[str, set[str]] = {}
    for path in out.rglob("*.dcm"):
        syntaxes.setdefault(path.parent.name, set()).add(str(pydicom.dcmread(path).file_meta.TransferSyntaxUID))
    assert syntaxes == {"P_1": {JPEG_LOSSLESS}, "02": {JPEG2000}, "x9": {JPEG_LOSSLESS}}


def test_a_breast_has_one_label(source: Path) -> None:
    """CBIS-DDSM has a breast whose views carry different labels; the competition's label belongs to the breast."""
    (source / "labels.csv").write_text(LABELS.replace("b,train,P_1,L,MLO,1", "b,train,P_1,L,MLO,0"))
    assert read_labels(source / "labels.csv")["cancer"].tolist()[:2] == [1, 1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("patient_id", "patientid", r"line 1: no column 'patient_id'.*Did you mean 'patientid'"),
        (",split,", ",splits,", "no column 'split'.*Did you mean 'splits'"),
        ("02,R", "02,RIGHT", "line 5: laterality is 'RIGHT', expected one of L, R"),
        ("MLO,1,2", "MLO,yes,2", "line 3: cancer is 'yes', expected 0 or 1"),
        ("\nb,", "\n007,", "line 3: image_id is '007', expected each one once"),
        ("\nb,", "\n../b,", "line 3: image_id is '../b', expected an id without /"),
        ("c,train", "c,test", "patient_id is 'P_1', expected each patient in train or in test, not in both"),
        ("d,train", "d,dev", "line 5: split is 'dev', expected one of train, test"),
        ("61\nb", "161\nb", "line 2: age is '161'"),
        ("1,2,61\nb", "1,E,61\nb", "breast_density is 'E', expected A to D, 1 to 4 or nothing"),
    ],
)
def test_bad_tables_are_refused_before_anything_is_written(source: Path, old: str, new: str, message: str) -> None:
    assert old in LABELS
    (source / "labels.csv").write_text(LABELS.replace(old, new, 1))
    with pytest.raises(TableError, match=message):
        wrap(source, split_column="split")
    assert not (source / "out").exists()


def test_bad_pictures_and_folders_are_refused_by_name(source: Path) -> None:
    with pytest.raises(RsnaKitError, match="is not an empty folder"):
        wrap_pictures(source / "img", source / "labels.csv", source, events=silent())
    (source / "img" / "b.pgm").write_bytes((source / "img" / "c.pgm").read_bytes())
    with pytest.raises(RsnaKitError, match=r"several pictures for 'b' \(b.pgm, b.png\)"):
        wrap(source)
    (source / "img" / "b.pgm").unlink()
    (source / "img" / "f.jpg").rename(source / "g.jpg")
    with pytest.raises(RsnaKitError, match="no picture for 1 of 6 rows, first 'f'"):
        wrap(source)
    assert not (source / "out").exists()
    (source / "g.jpg").rename(source / "img" / "f.jpg")
    cv2.imwrite(str(source / "img" / "b.png"), np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8))
    with pytest.raises(RsnaKitError, match=r"b.png: got uint8 \(9, 9, 3\), expected 8- or 16-bit gray"):
        wrap(source)
    (source / "img" / "007.png").write_text("no picture")
    with pytest.raises(RsnaKitError, match=r"007.png: not a picture"):
        wrap_pictures(source / "img", source / "labels.csv", source / "again", events=silent())


def test_dicom_files_are_linked_as_a_site_of_their_own(phantom: Path, tmp_path: Path) -> None:
    """By name and by folder, in any depth: the same pictures as from where they come, and two machines told apart."""
    table = read_train(phantom / "train.csv")
    source = tmp_path / "source"
    for number, (image_id, path) in enumerate(find_competition(phantom).files("train", table)):
        place = source / (f"images/{image_id}.dicom" if number % 2 else f"{image_id}/1.2.3/4.5/1-1.dcm")
        place.parent.mkdir(parents=True, exist_ok=True)
        dataset = pydicom.dcmread(path)
        dataset.Manufacturer, dataset.ManufacturerModelName = "HOLOGIC", ("Selenia" if number % 2 else "Dimensions")
        dataset.save_as(place)
    (source / "mask.png").write_bytes(b"")
    table.to_csv(tmp_path / "labels.csv", index=False)
    wrap_pictures(source, tmp_path / "labels.csv", tmp_path / "out", site=7, events=silent())
    wrapped = read_train(tmp_path / "out" / "train.csv")
    assert wrapped["site_id"].eq(7).all()
    assert wrapped["machine_id"].tolist() == [700 + number % 2 for number in range(len(table))]
    ids = ["patient_id", "image_id", "laterality", "cancer"]
    pd.testing.assert_frame_equal(wrapped[ids], table[ids])
    image = ImageConfig(height=64, width=32)
    for image_id, path in find_competition(tmp_path / "out").files("train", wrapped.iloc[:2]):
        original = next(phantom.glob(f"train_images/*/{image_id}.dcm"))
        assert np.array_equal(read_image(path, image_id, image).image, read_image(original, image_id, image).image)
    (source / "images" / f"{table['image_id'][0]}.dcm").write_bytes(b"twice")
    with pytest.raises(RsnaKitError, match="has several pictures for"):
        wrap_pictures(source, tmp_path / "labels.csv", tmp_path / "again", events=silent())


def test_the_recipe_for_cbis_ddsm_reads_its_published_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of docs/kaggle.md, as it stands there, on the four tables: patients, breasts, images, cancer breasts."""
    source = realdata("tables") / "cbis_ddsm"
    for path in source.glob("*_description_*.csv.gz"):
        (tmp_path / path.name.removesuffix(".gz")).write_bytes(gzip.decompress(path.read_bytes()))
    text = (ROOT / "docs" / "kaggle.md").read_text(encoding="utf-8")
    recipe = next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "_case_description_" in block)
    monkeypatch.chdir(tmp_path)
    exec(recipe, {})
    labels = read_labels(tmp_path / "labels.csv")
    assert tuple(counts(labels).values())[:4] == (1566, 1708, 3032, 761)


def test_the_script_prints_json(source: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "wrap-pictures"), str(source / "img"), str(source / "labels.csv")]
    done = subprocess.run([*command, str(source / "out")], capture_output=True, text=True)
    assert (done.returncode, json.loads(done.stdout)["train"]["patients"]) == (0, 3)


@pytest.mark.parametrize(
    ("folder", "images", "split", "train", "hidden"),
    [
        ("mini_mias", "half_512", None, (161, 322, 322, 52), (0, 0, 0, 0)),
        ("cbis_ddsm_mass256", "img", "split", (691, 722, 1231, 350), (201, 210, 361, 85)),
    ],
)
def test_the_real_sets_wrap(
    tmp_path: Path, folder: str, images: str, split: str | None, train: tuple[int, ...], hidden: tuple[int, ...]
) -> None:
    """Patients, breasts, images and cancer breasts of the published sets; the first pictures are wrapped."""
    source = realdata(folder)
    table = read_labels(source / "labels.csv", split)
    assert tuple(counts(table[table["split"] == "train"]).values())[:4] == train
    assert tuple(counts(table[table["split"] == "test"]).values())[:4] == hidden
    (tmp_path / "labels.csv").write_text("\n".join((source / "labels.csv").read_text().splitlines()[:31]) + "\n")
    wrap_pictures(source / images, tmp_path / "labels.csv", tmp_path / "out", events=silent())
    for path in sorted((tmp_path / "out").rglob("*.dcm"))[::5]:
        expected = cv2.imread(str(source / images / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(pydicom.dcmread(path).pixel_array, expected)
