"""The mammography machines of the competition and their habits, plus one that only the hidden test knows.

Shares, matrix sizes, photometric interpretation, windows, VOI function, sign, bits and background were measured on
the real files by the competition's participants. Tissue levels are chosen so that stored values span what real files
hold: 1466 to 3204 for machine 29, 2085 to 2919 (percentiles 1 and 99) for a GE unit like machine 93. The detector pitch
is not in the stripped headers: it is taken from the detector families that have these matrix sizes (0.070 mm
selenium panels of 18x24 and 24x29 cm, 0.100 mm caesium iodide panels of 19x23 cm, 0.050 mm scanning and plate
readers of 24x30 cm).

A machine fixes *how* a breast is recorded, never whether there is a cancer in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rsna_lab.phantom.dicom_file import JPEG2000, JPEG_LOSSLESS


@dataclass(frozen=True)
class Machine:
    """One machine's habits.

    `fat` and `gain` say how it turns anatomy into stored values: a pixel over pure fat has about the value `fat`, and
    one unit of attenuation (natural logarithm) above it adds `gain`. `equalisation` is the share of the thickness
    fall-off at the skin that its processing takes away (0 none, 1 all). `noise` is the standard deviation of one
    full-size pixel in stored values. `air` is the stored value of air before inversion, `air_noise` its deviation.
    """

    machine_id: str
    site_id: int
    share: float  # of all training images
    sizes: tuple[tuple[int, int, float], ...]  # rows, columns, pitch in mm, at full size
    syntax: str
    photometric: str = "MONOCHROME2"
    voi_function: str = ""
    sign: int = -1
    bits_stored: int = 12
    full_scale: int = 4095  # largest value its processing produces
    fat: float = 1250.0
    gain: float = 2000.0
    equalisation: float = 0.87
    noise: float = 26.0
    air: float = 0.0
    air_noise: float = 0.0
    window: str = "fixed"  # "fixed": `windows`; "content": offsets from the breast's own level
    windows: tuple[tuple[float, float], ...] = ()
    drops_rescale: bool = False  # leaves slope and intercept out of some headers


_HOLOGIC = ((3328, 2560, 0.07), (4096, 3328, 0.07))
_GE = ((2294, 1914, 0.1), (3062, 2394, 0.1))
# A GE unit; others are like it.
_GE_UNIT = Machine(
    "93",
    1,
    0.0350,
    _GE,
    JPEG_LOSSLESS,
    voi_function="SIGMOID",
    fat=2150.0,
    gain=990.0,
    equalisation=0.94,
    noise=14.0,
    window="content",
    windows=((200.0, 900.0), (248.0, 750.0), (128.0, 1050.0)),
)

MACHINES: tuple[Machine, ...] = (
    Machine("49", 1, 0.4301, _HOLOGIC, JPEG_LOSSLESS, windows=((2047.0, 4096.0),)),
    Machine(
        "48",
        2,
        0.1590,
        ((4096, 3328, 0.07),),
        JPEG2000,
        fat=1150.0,
        gain=1840.0,
        equalisation=0.84,
        window="content",
        windows=((150.0, 2600.0),),
    ),
    Machine(
        "29",
        2,
        0.1511,
        ((5355, 4915, 0.05),),
        JPEG2000,
        "MONOCHROME1",
        "SIGMOID",
        sign=1,
        bits_stored=16,
        full_scale=3524,
        fat=1150.0,
        gain=600.0,
        equalisation=0.8,
        noise=30.0,
        window="fixed",
        windows=((1802.31, 1091.97), (1802.31, 1091.97), (2020.704, 1091.97), (1583.916, 1091.97)),
    ),
    Machine(
        "21",
        2,
        0.1503,
        ((2776, 2082, 0.083),),
        JPEG2000,
        sign=1,
        fat=1050.0,
        gain=2160.0,
        equalisation=0.81,
        windows=((2048.0, 4096.0),),
    ),
    _GE_UNIT,
    replace(_GE_UNIT, machine_id="216", share=0.0349, sizes=_GE[:1], fat=2120.0, gain=1020.0),
    Machine(
        "210",
        1,
        0.0196,
        ((4740, 3540, 0.05), (5928, 4728, 0.05)),
        JPEG_LOSSLESS,
        "MONOCHROME1",
        sign=1,
        full_scale=1023,
        fat=330.0,
        gain=530.0,
        equalisation=0.66,
        noise=12.0,
        air=6.0,
        air_noise=3.0,
        window="content",
        windows=((40.0, 900.0),),
    ),
    Machine(
        "170",
        1,
        0.0169,
        _HOLOGIC,
        JPEG_LOSSLESS,
        fat=1200.0,
        gain=1920.0,
        equalisation=0.84,
        window="content",
        windows=((200.0, 2400.0),),
    ),
    replace(_GE_UNIT, machine_id="190", share=0.0026),
    replace(
        _GE_UNIT,
        machine_id="197",
        share=0.0005,
        sizes=((1236, 1022, 0.187), *_GE),
        fat=2100.0,
        gain=960.0,
        equalisation=0.91,
        drops_rescale=True,
    ),
)

# Seen only by the hidden test, as the real one had machines that training never showed. Its site stored the other
# syntax in training, so a table keyed by machine or by site breaks on it.
HIDDEN_MACHINE = Machine(
    "700",
    2,
    0.15,
    ((3518, 2800, 0.085),),
    JPEG_LOSSLESS,
    voi_function="LINEAR",
    sign=1,
    bits_stored=14,
    full_scale=16383,
    fat=5200.0,
    gain=6880.0,
    equalisation=0.75,
    noise=80.0,
    window="content",
    windows=((900.0, 9000.0), (900.0, 6500.0)),
)

# The visible test patient of the competition.
VISIBLE_TEST_MACHINE = next(machine for machine in MACHINES if machine.machine_id == "21")

BY_ID = {machine.machine_id: machine for machine in (*MACHINES, HIDDEN_MACHINE)}
