"""An attenuation map → the stored pixels and header of one machine.

Order: fat level and gain -> equalised skin fall-off -> quantum noise -> rounding -> air -> lead markers ->
MONOCHROME1 inversion -> orientation. Pixels are uint16, at most 2**bits_stored - 1.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from rsna_lab.phantom.anatomy import OBLIQUE_VIEWS, Breast
from rsna_lab.phantom.dicom_file import DicomFacts
from rsna_lab.phantom.machines import Machine
from rsna_lab.phantom.population import ImagePlan, PatientPlan
from rsna_lab.phantom.projection import Frame, Shadow, cast_shadow

REDUCTION = 4  # the default phantom has a quarter of the rows and columns
_TISSUE_TOP = 3200  # stored value of no attenuation on the MONOCHROME1 machine with 16 bits


def acquire(
    plan: PatientPlan, image: ImagePlan, breast: Breast, machine: Machine, rng: np.random.Generator, full_size: bool
) -> tuple[np.ndarray, DicomFacts]:
    """Expose one image.

    Args:
        plan: the patient.
        image: which view.
        breast: the breast on that side.
        machine: the patient's machine.
        rng: chance of this exposure: position, noise, marker.
        full_size: real matrix size; otherwise a quarter of the rows and columns at four times the pitch.

    Returns:
        Stored pixels uint16 (rows, columns) and the facts of the header.
    """
    frame, noise = _frame(breast, image.view, machine, rng, full_size)
    implant = "" if not plan.implant else "displaced" if image.displaced else "full"
    shadow = cast_shadow(breast, image.view, frame, rng, implant)
    values, centre = _expose(shadow, frame, machine, noise, rng)
    _draw_marker(values, shadow, frame, image, machine, rng)
    padding, windows = 0, machine.windows
    if machine.photometric == "MONOCHROME1":
        values = _inverted(values, machine, rng)
        padding = int(values.max())
        centre = machine.full_scale - centre
    if machine.window == "content":  # they follow the image, as on most machines
        windows = tuple((float(round(centre + offset)), width) for offset, width in windows)
    # Chest wall on the left for a left breast, on the right for a right one; a few are stored the other way round.
    if (image.laterality == "R") != (rng.random() < 0.02):
        values = values[:, ::-1]
    voi_function = machine.voi_function  # machines 29 and 197 are not consistent
    if machine.machine_id in ("29", "197") and rng.random() < 0.12:
        voi_function = "LINEAR" if machine.machine_id == "29" else ""
    facts = DicomFacts(
        patient_id=plan.patient_id,
        image_id=image.image_id,
        laterality=image.laterality,
        transfer_syntax=machine.syntax,
        bits_stored=machine.bits_stored,
        photometric=machine.photometric,
        windows=windows,
        voi_function=voi_function,
        padding=padding,
        relationship_sign=machine.sign,
        rescale=not (machine.drops_rescale and rng.random() < 0.5),
        instance_number=1 + plan.images.index(image),
    )
    return np.ascontiguousarray(values), facts


def _frame(
    breast: Breast, view: str, machine: Machine, rng: np.random.Generator, full_size: bool
) -> tuple[Frame, float]:
    """The smallest of the machine's detectors that holds the breast, and the noise of its samples."""
    need = breast.depth + breast.nipple + 4
    fitting = [size for size in machine.sizes if size[1] * size[2] * 0.88 >= need and size[0] * size[2] > 2 * need]
    rows, columns, pitch = (fitting or machine.sizes[-1:])[0]
    noise = machine.noise
    if not full_size:
        rows, columns, pitch, noise = rows // REDUCTION, columns // REDUCTION, pitch * REDUCTION, noise / REDUCTION
    position = rng.normal(0.60, 0.03) if view in OBLIQUE_VIEWS else rng.normal(0.5, 0.025)
    return Frame(rows, columns, pitch, float(np.clip(position, 0.4, 0.7)) * rows), noise


def _expose(
    shadow: Shadow, frame: Frame, machine: Machine, noise: float, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Stored values before inversion, uint16 (rows, columns), and the level that windows follow."""
    exposure = float(rng.normal(1, 0.04))
    level = shadow.excess - (1 - machine.equalisation) * shadow.missing
    tissue = machine.fat * exposure + machine.gain * level
    grain = rng.standard_normal(tissue.shape, np.float32)
    tissue += noise * cv2.GaussianBlur(grain, (0, 0), 0.6) / 0.47  # correlated a little, as by a detector's blur
    floor = machine.air + 0.02 * machine.full_scale
    tissue = np.clip(tissue, floor, 0.985 * machine.full_scale)
    values = np.full((frame.rows, frame.columns), machine.air, np.float32)
    if machine.air_noise:
        values += machine.air_noise * rng.standard_normal(values.shape, np.float32)
    columns = tissue.shape[1]
    values[:, :columns][shadow.mask] = tissue[shadow.mask]
    inner = tissue[shadow.mask & (shadow.missing < 0.2)]
    centre = float(np.quantile(inner, 0.35)) if inner.size else machine.fat
    return np.clip(np.rint(values), 0, machine.full_scale).astype(np.uint16), centre


def _inverted(values: np.ndarray, machine: Machine, rng: np.random.Generator) -> np.ndarray:
    """MONOCHROME1: dense tissue is small, air is the largest value of the image.

    With 16 bits stored (machine 29) air is masked with a padding value that differs from image to image
    (3044 to 3524 on the real ones) while tissue keeps its scale.
    """
    if machine.bits_stored < 16:
        return machine.full_scale - values
    tissue = _TISSUE_TOP - np.minimum(values, _TISSUE_TOP)
    padding = np.uint16(np.clip(rng.normal(3300, 110), _TISSUE_TOP, machine.full_scale))
    return np.where(values == int(machine.air), padding, tissue)


def _draw_marker(
    values: np.ndarray, shadow: Shadow, frame: Frame, image: ImagePlan, machine: Machine, rng: np.random.Generator
) -> None:
    """Lead letters such as "R MLO" in the air beside the axillary half of the breast, in place.

    The text is drawn to be read in the orientation that the image ends up in.
    """
    text = f"{image.laterality} {image.view}"
    height_mm = rng.uniform(7, 11)
    scale = height_mm / frame.pitch / 22  # a capital of Hershey Simplex is 22 samples high at scale 1
    stroke = max(round(1.0 / frame.pitch), 1)
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, stroke)
    letters = np.zeros((height + 4 * stroke, width + 4 * stroke), np.uint8)
    cv2.putText(
        letters, text, (2 * stroke, height + 2 * stroke), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, stroke, cv2.LINE_AA
    )
    # Letters, or a plate with the letters cut out.
    label = _turned(np.bitwise_not(letters) if rng.random() < 0.4 else letters, float(rng.normal(0, 6)))
    if image.laterality == "R":
        label = label[:, ::-1]
    rows, columns = label.shape
    top = int(frame.rows * rng.uniform(0.03, 0.22))
    near = int(shadow.edge[max(top - 5, 0) : top + rows + 5].max(initial=0) / frame.pitch) + 4
    room = frame.columns - columns - 2
    if room <= near or top + rows >= frame.rows:
        return  # no air beside the breast at this height: the marker fell outside the collimation
    left = int(rng.uniform(near + 0.35 * (room - near), room))
    part = values[top : top + rows, left : left + columns]
    lead = 0.97 * machine.full_scale
    part[:] = np.maximum(part, np.rint(label.astype(np.float32) * (lead / 255)).astype(np.uint16))


def _turned(label: np.ndarray, degrees: float) -> np.ndarray:
    rows, columns = label.shape
    angle = math.radians(abs(degrees))
    size = (
        math.ceil(columns * math.cos(angle) + rows * math.sin(angle)),
        math.ceil(rows * math.cos(angle) + columns * math.sin(angle)),
    )
    turn = cv2.getRotationMatrix2D((columns / 2, rows / 2), degrees, 1.0)
    turn[:, 2] = turn[:, 2] + ((size[0] - columns) / 2, (size[1] - rows) / 2)
    return np.asarray(cv2.warpAffine(label, turn, size, flags=cv2.INTER_LINEAR))
