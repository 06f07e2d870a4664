"""The synthetic competition on disk: layout, tables, headers, codestreams, refusals."""

from __future__ import annotations

import hashlib
import io
import struct
from pathlib import Path

import dicomsdl
import numpy as np
import pandas as pd
import pydicom
import pytest

from rsna_kit.runtime.errors import RsnaKitError, UsageError
from rsna_kit.runtime.events import Events
from rsna_kit.runtime.files import write_json
from rsna_lab.phantom.acquisition import acquire
from rsna_lab.phantom.anatomy import build_breasts
from rsna_lab.phantom.dicom_file import JPEG2000, JPEG_LOSSLESS, DicomFacts, write_dicom
from rsna_lab.phantom.machines import HIDDEN_MACHINE, MACHINES, Machine
from rsna_lab.phantom.population import PatientPlan, plan_patients
from rsna_lab.phantom.writer import write_competition

KEPT = (
    "SOPInstanceUID ContentDate PatientID StudyInstanceUID SeriesInstanceUID InstanceNumber ImageLaterality "
    "SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation "
    "PixelPaddingValue PixelIntensityRelationship PixelIntensityRelationshipSign WindowCenter WindowWidth "
    "RescaleIntercept RescaleSlope RescaleType VOILUTFunction LossyImageCompression PixelData"
)


COUNTS = ("train", "test", "hidden")


def silent() -> Events:
    return Events(stream=io.StringIO())


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def exposed() -> dict[str, tuple[np.ndarray, DicomFacts]]:
    """One MLO of every machine, reduced size."""
    rng = np.random.default_rng(2)
    plan = next(plan for plan in plan_patients(rng, 6, 0.3, MACHINES, set()) if not plan.implant)
    breasts = build_breasts(plan, rng)
    image = next(image for image in plan.images if image.view == "MLO")
    return {
        machine.machine_id: acquire(
            plan, image, breasts[image.laterality], machine, np.random.default_rng(4), full_size=False
        )
        for machine in (*MACHINES, HIDDEN_MACHINE)
    }


def of_machine(exposed: dict[str, tuple[np.ndarray, DicomFacts]], tmp_path: Path, machine: str) -> pydicom.Dataset:
    pixels, facts = exposed[machine]
    write_dicom(tmp_path / "image.dcm", pixels, facts)
    return pydicom.dcmread(tmp_path / "image.dcm")


def codestream(dataset: pydicom.Dataset) -> bytes:
    frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    assert len(frames) == 1
    return frames[0]


# ---------------------------------------------------------------- layout and tables


def test_tables_and_files_are_those_of_the_competition(phantom: Path) -> None:
    train = (
        "site_id,patient_id,image_id,laterality,view,age,cancer,biopsy,invasive,BIRADS,implant,density,machine_id,"
        "difficult_negative_case"
    )
    test = "site_id,patient_id,image_id,laterality,view,age,implant,machine_id,prediction_id"
    for path, head in {
        "train.csv": train,
        "test.csv": test,
        "hidden/test.csv": test,
        "sample_submission.csv": "prediction_id,cancer",
        "hidden/truth.csv": "prediction_id,patient_id,laterality,cancer,site_id,machine_id",
    }.items():
        assert (phantom / path).read_text().splitlines()[0] == head
    for table in ("train.csv", "test.csv", "hidden/test.csv"):
        images = phantom / table.replace(".csv", "_images")
        expected = {
            f"{row.patient_id}/{row.image_id}.dcm" for row in pd.read_csv(phantom / table, dtype=str).itertuples()
        }
        assert {str(path.relative_to(images)) for path in images.rglob("*") if path.is_file()} == expected


def test_the_visible_test_is_patient_10008(phantom: Path) -> None:
    rows = pd.read_csv(phantom / "test.csv", dtype=str)
    assert set(rows["patient_id"]) == {"10008"}
    assert sorted(rows["laterality"] + rows["view"]) == ["LCC", "LMLO", "RCC", "RMLO"]
    assert rows[["site_id", "machine_id", "age"]].drop_duplicates().to_numpy().tolist() == [["2", "21", "81"]]
    sample = "prediction_id,cancer\n10008_L,0.0211676964\n10008_R,0.0211676964\n"
    assert (phantom / "sample_submission.csv").read_text() == sample
    facts = pydicom.dcmread(next((phantom / "test_images" / "10008").iterdir()))
    assert facts.file_meta.TransferSyntaxUID == JPEG2000
    assert (facts.PhotometricInterpretation, "VOILUTFunction" in facts) == ("MONOCHROME2", False)


def test_labels_belong_to_breasts_and_the_hidden_test_is_of_others(phantom: Path) -> None:
    train, hidden = pd.read_csv(phantom / "train.csv"), pd.read_csv(phantom / "hidden" / "test.csv")
    for column in ("cancer", "biopsy", "invasive", "difficult_negative_case"):
        assert (train.groupby(["patient_id", "laterality"])[column].nunique() == 1).all()
    truth = pd.read_csv(phantom / "hidden" / "truth.csv")
    sample = pd.read_csv(phantom / "hidden" / "sample_submission.csv")
    assert truth["prediction_id"].tolist() == sample["prediction_id"].tolist()
    assert train["cancer"].sum() > 0
    assert truth["cancer"].sum() > 0
    assert 700 in set(hidden["machine_id"]) - set(train["machine_id"])
    for ids in ("patient_id", "image_id"):
        assert not set(train[ids]) & set(hidden[ids])


# ---------------------------------------------------------------- population, without pixels


@pytest.fixture(scope="module")
def crowd() -> list[PatientPlan]:
    return plan_patients(np.random.default_rng(0), 3000, 0.0207, MACHINES, set())


def test_the_population_has_the_real_frequencies(crowd: list[PatientPlan]) -> None:
    images = np.array([len(plan.images) for plan in crowd])
    assert (images.min(), images.max()) == (4, 14)
    assert abs(images.mean() - 4.59) < 0.1
    breasts = [breast for plan in crowd for breast in plan.breasts.values()]
    assert sum(breast.cancer for breast in breasts) == round(0.0207 * 6000)
    assert sum(plan.implant for plan in crowd) == round(0.016 * 3000)
    assert abs(np.mean([plan.age for plan in crowd]) - 58.5) < 1
    assert abs(np.mean([plan.site_id == 1 for plan in crowd]) - 0.54) < 0.01
    density = pd.Series([plan.density for plan in crowd]).value_counts(normalize=True)
    assert np.allclose(density[["A", "B", "C", "D"]], [0.105, 0.43, 0.413, 0.052], atol=0.04)
    views = {image.view for plan in crowd for image in plan.images}
    assert views == {"CC", "MLO", "AT", "LM", "ML", "LMO"}


def test_the_other_columns_follow_from_the_label(crowd: list[PatientPlan]) -> None:
    for plan in crowd:
        shown = {(image.laterality, image.view) for image in plan.images}
        assert {("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO")} <= shown
        for breast in plan.breasts.values():
            assert breast.biopsy or not breast.cancer
            assert breast.cancer or not breast.invasive
            assert not (breast.cancer and breast.difficult)
            assert (breast.birads == 0 or not breast.cancer) if plan.site_id == 1 else breast.birads is None
        assert plan.site_id == 1 or not plan.show_density
    ageless = [plan for plan in crowd if not plan.show_age]
    assert 1 <= len(ageless) < 12
    assert {plan.site_id for plan in ageless} == {1}


def test_cancer_does_not_depend_on_the_machine() -> None:
    plans = plan_patients(np.random.default_rng(1), 2000, 0.15, MACHINES, set())
    table = pd.DataFrame(
        {"machine": [p.machine_id for p in plans], "cancer": [sum(b.cancer for b in p.breasts.values()) for p in plans]}
    )
    large = table.groupby("machine").filter(lambda group: len(group) > 100)
    assert np.allclose(large.groupby("machine")["cancer"].mean(), 0.30, atol=0.1)


def test_twenty_patients_show_every_machine() -> None:
    plans = plan_patients(np.random.default_rng(1), 20, 0.15, MACHINES, set())
    assert {plan.machine_id for plan in plans} == {machine.machine_id for machine in MACHINES}


@pytest.mark.parametrize(("patients", "prevalence", "cancers"), [(1, 0.15, 1), (4, 0.01, 2), (30, 0.0, 0), (5, 0.5, 5)])
def test_prevalence_is_a_rounded_quota(patients: int, prevalence: float, cancers: int) -> None:
    plans = plan_patients(np.random.default_rng(1), patients, prevalence, MACHINES, set())
    assert sum(breast.cancer for plan in plans for breast in plan.breasts.values()) == cancers


# ---------------------------------------------------------------- headers and codestreams


def test_headers_hold_only_what_the_competition_kept(exposed: dict, tmp_path: Path) -> None:
    for machine, kept in (("93", KEPT), ("49", KEPT.replace("VOILUTFunction ", ""))):
        assert " ".join(element.keyword for element in of_machine(exposed, tmp_path, machine)) == kept


@pytest.mark.parametrize("machine", [*MACHINES, HIDDEN_MACHINE], ids=lambda machine: machine.machine_id)
def test_machines_keep_their_habits(exposed: dict, tmp_path: Path, machine: Machine) -> None:
    """And two independent decoders give the pixels: neither GDCM nor dicomsdl shares imagecodecs' lossless JPEG."""
    dataset = of_machine(exposed, tmp_path, machine.machine_id)
    assert dataset.PixelData[:8] == b"\xfe\xff\x00\xe0\x00\x00\x00\x00"  # an empty offset table
    dataset.pixel_array_options(decoding_plugin="gdcm")
    assert np.array_equal(dataset.pixel_array, exposed[machine.machine_id][0])
    stored = dicomsdl.open(str(tmp_path / "image.dcm")).pixelData(storedvalue=True)
    assert np.array_equal(stored, exposed[machine.machine_id][0])
    assert (dataset.Rows, dataset.Columns) in {(rows // 4, columns // 4) for rows, columns, _ in machine.sizes}
    assert dataset.file_meta.TransferSyntaxUID == machine.syntax
    assert (dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit) == (
        16,
        machine.bits_stored,
        machine.bits_stored - 1,
    )
    assert dataset.PixelRepresentation == 0
    assert dataset.PixelIntensityRelationshipSign == machine.sign
    assert np.atleast_1d(dataset.WindowWidth).tolist() == [width for _, width in machine.windows]
    if machine.window == "fixed":
        assert np.atleast_1d(dataset.WindowCenter).tolist() == [centre for centre, _ in machine.windows]
    if machine.machine_id not in ("29", "197"):  # a few of their files say otherwise
        assert dataset.get("VOILUTFunction", "") == machine.voi_function
    pixels = exposed[machine.machine_id][0]
    if machine.photometric == "MONOCHROME1":
        assert dataset.PixelPaddingValue == pixels.max()
        assert np.median(pixels) > 0.97 * pixels.max()  # air is most of the picture, and the largest value
    else:
        assert dataset.PixelPaddingValue == np.median(pixels) == 0


def test_syntax_is_the_site_in_training_and_not_in_the_hidden_test() -> None:
    assert {(machine.site_id, machine.syntax) for machine in MACHINES} == {(1, JPEG_LOSSLESS), (2, JPEG2000)}
    assert (HIDDEN_MACHINE.site_id, HIDDEN_MACHINE.syntax) == (2, JPEG_LOSSLESS)
    assert HIDDEN_MACHINE.sizes[0][:2] not in {size[:2] for machine in MACHINES for size in machine.sizes}


@pytest.mark.parametrize("machine", ["21", "29"])
def test_90_is_a_jp2_file_with_a_16_bit_reversible_codestream(exposed: dict, tmp_path: Path, machine: str) -> None:
    """ISO/IEC 15444-1 A.5.1 (SIZ) and A.6.1 (COD)."""
    data = codestream(of_machine(exposed, tmp_path, machine))
    assert data[:12] == bytes.fromhex("0000000c6a5020200d0a870a")
    siz = data.index(b"\xff\x4f\xff\x51") + 2
    rows, columns = exposed[machine][0].shape
    width, height, x0, y0, tile_width, tile_height = struct.unpack(">6I", data[siz + 6 : siz + 30])
    assert (width, height, x0, y0) == (columns, rows, 0, 0)
    assert min(tile_width - width, tile_height - height) >= 0  # one tile
    components, depth = struct.unpack(">HB", data[siz + 38 : siz + 41])
    assert (components, depth) == (1, 0x0F)  # unsigned, 16 bits
    cod = data.index(b"\xff\x52", siz)
    progression, layers, _, levels, block_width, block_height, _, wavelet = struct.unpack(
        ">BHBBBBBB", data[cod + 5 : cod + 14]
    )
    assert (progression, layers, levels) == (0, 1, 5)  # LRCP
    assert (block_width, block_height) == (4, 4)  # 64 x 64
    assert wavelet == 1  # reversible 5/3


@pytest.mark.parametrize("machine", ["49", "210", "700"])
def test_70_is_lossless_jpeg_with_predictor_1(exposed: dict, tmp_path: Path, machine: str) -> None:
    """ITU-T T.81 B.2.2 (SOF3) and B.2.3 (SOS)."""
    data = codestream(of_machine(exposed, tmp_path, machine))
    assert data[:2] == b"\xff\xd8"
    sof = data.index(b"\xff\xc3")
    precision, rows, columns, components = struct.unpack(">BHHB", data[sof + 4 : sof + 10])
    assert (precision, (rows, columns), components) == (16, exposed[machine][0].shape, 1)
    sos = data.index(b"\xff\xda")
    assert data[sos + 7] == 1  # selection value 1, "first-order prediction"


# ---------------------------------------------------------------- same seed, same bytes; resuming; refusals


def test_a_run_that_was_cut_off_goes_on_and_gives_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    out = tmp_path / "out"
    written = write_competition(out, 1, 4, workers=1, events=silent())
    whole = hashes(out)
    kept, *lost = sorted(out.rglob("*.dcm"))
    for path in [*lost[:4], out / "train.csv"]:
        path.unlink()
    # What a killed run leaves behind: its options, without counts.
    write_json(out / "phantom.json", {name: value for name, value in written.items() if name not in COUNTS})
    before = kept.stat().st_mtime_ns
    assert write_competition(out, 1, 4, workers=2, events=silent()) == written
    assert hashes(out) == whole
    assert kept.stat().st_mtime_ns == before

    kept.unlink()  # a finished folder is returned at once: nothing is looked at
    assert write_competition(out, 1, 4, events=silent()) == written
    assert not kept.exists()
    with pytest.raises(RsnaKitError, match=r"holds another phantom .seed: 4 there, 5 asked"):
        write_competition(out, 1, 5, events=silent())


def test_foreign_files_and_bad_options_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RsnaKitError, match=r"not empty \(thesis.txt\)"):
        write_competition(tmp_path, 1, 1, events=silent())
    with pytest.raises(UsageError, match="got 0 patients, seed 1, expected 1 to 20000"):
        write_competition(tmp_path / "out", 0, 1)
    with pytest.raises(UsageError, match=r"prevalence: got 0\.9"):
        write_competition(tmp_path / "out", 3, 1, prevalence=0.9)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("pixels", "changes", "message"),
    [
        (np.zeros((2, 2), np.uint8), {}, "got uint8"),
        (np.zeros((2, 2, 1), np.uint16), {}, "expected uint16 .rows, columns."),
        (np.full((2, 2), 4096, np.uint16), {}, "4096 does not fit in 12 bits"),
        (np.zeros((2, 2), np.uint16), {"transfer_syntax": "1.2.3"}, "transfer syntax: got '1.2.3'"),
        (np.zeros((2, 2), np.uint16), {"photometric": "RGB"}, "photometric: got 'RGB'"),
    ],
)
def test_write_dicom_refuses_what_it_cannot_store(
    tmp_path: Path, pixels: np.ndarray, changes: dict, message: str
) -> None:
    facts = {"patient_id": "1", "image_id": "2", "laterality": "L", "transfer_syntax": JPEG2000, "bits_stored": 12}
    with pytest.raises(ValueError, match=message):
        write_dicom(tmp_path / "a.dcm", pixels, DicomFacts(**{**facts, **changes}))
    assert list(tmp_path.iterdir()) == []
