"""Random fields with the statistics of breast tissue, float32, on a grid of millimetres.

The power spectrum of mammographic backgrounds falls as 1/f^b with b about 3 (A. E. Burgess, F. L. Jacobson and
P. F. Judy, "Human observer detection experiments with mammograms and power-law noise", Med. Phys. 28, 2001); all
texture here starts from such fields.
"""

from __future__ import annotations

import cv2
import numpy as np


def power_law_field(
    rng: np.random.Generator, shape: tuple[int, ...], pitch_mm: float, beta: float = 3.0, longest_mm: float = 40.0
) -> np.ndarray:
    """Gaussian field with power spectrum 1/(f^beta + f0^beta), f0 = 1/longest_mm.

    Args:
        rng: consumed for exactly two arrays of the spectrum's size.
        shape: (rows, columns) of the result; sizes from `cv2.getOptimalDFTSize` give a field that wraps around
            without a seam.
        pitch_mm: distance of two samples, mm.
        beta: exponent of the power (amplitude falls with half of it).
        longest_mm: structures longer than this get no more power, so that a field has no global slope.

    Returns:
        float32 `shape`, mean 0, standard deviation 1.
    """
    rows, columns = (cv2.getOptimalDFTSize(n) for n in shape)
    fy = np.fft.fftfreq(rows, pitch_mm).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(columns, pitch_mm).astype(np.float32)[None, :]
    frequency = np.sqrt(fy * fy + fx * fx)
    amplitude = 1.0 / np.sqrt(frequency**beta + (1.0 / longest_mm) ** beta)
    spectrum = np.empty(amplitude.shape, np.complex64)
    spectrum.real = rng.standard_normal(amplitude.shape, np.float32)
    spectrum.imag = rng.standard_normal(amplitude.shape, np.float32)
    spectrum *= amplitude
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, (rows, columns))[: shape[0], : shape[1]]
    return ((field - field.mean()) / field.std()).astype(np.float32)


def smoothstep(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, a cubic ramp between; float32."""
    t = np.clip((values - low) * (1.0 / (high - low)), 0.0, 1.0)
    return (t * t * (3.0 - 2.0 * t)).astype(np.float32)


def ridges(field: np.ndarray, width: float) -> np.ndarray:
    """Bright lines where `field` crosses zero: exp(-(field/width)^2), float32 in [0, 1]."""
    return np.exp(-np.square(field / width)).astype(np.float32)


def towards(
    field: np.ndarray, centre: tuple[float, float], stretch: float, bend: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Resample an isotropic `field` so that its structures run towards `centre`, not quite straight.

    The field is laid on polar coordinates about `centre` with distances shrunk: structures become `stretch` times
    longer along their ray and, halfway across the picture, keep their width. `bend` moves the sampling points.

    Args:
        field: float32 (rows, columns).
        centre: (row, column) in samples; may lie outside.
        stretch: at least 1.
        bend: displacements along and across the rays in samples, float32 (rows, columns) each; smooth, or the
            structures break up.

    Returns:
        float32, same shape.
    """
    rows, columns = field.shape
    dy = np.arange(rows, dtype=np.float32)[:, None] - np.float32(centre[0])
    dx = np.arange(columns, dtype=np.float32)[None, :] - np.float32(centre[1])
    distance = np.sqrt(dx * dx + dy * dy)
    angle = np.arctan2(dy, -dx)  # 0 straight back from the centre, where the field must have no seam
    map_x = (distance + bend[0]) * np.float32(1 / stretch)
    map_y = angle * np.float32(0.45 * max(rows, columns)) + np.float32(0.5 * rows) + bend[1]
    return cv2.remap(field, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def smoothed(field: np.ndarray, factor: int) -> np.ndarray:
    """`field` without structures below `factor` samples, by shrinking and enlarging; float32, standard deviation 1."""
    rows, columns = field.shape
    small = cv2.resize(field, (columns // factor + 3, rows // factor + 3), interpolation=cv2.INTER_AREA)
    large = cv2.resize(small, (columns, rows), interpolation=cv2.INTER_CUBIC)
    return (large / large.std()).astype(np.float32)


def resized(field: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """`field` on a grid of `shape` (rows, columns), linear interpolation; the same object when nothing changes."""
    if field.shape == shape:
        return field
    return np.asarray(cv2.resize(field, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR))
