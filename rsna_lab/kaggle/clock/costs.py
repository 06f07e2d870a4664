"""What the hidden run's work takes, and what may happen to it: the numbers behind `simulation`.

* CPU seconds of a file by its kind, coded sizes and the mix of kinds: measured, benchmarks/prepare.py at 1536x768.
* A further halving of JPEG 2000 takes 0.27 of the time: measured on files of the competition (24 to 27 %).
* A forward pass on a CPU core: measured, benchmarks/inference.py, ConvNeXt-Tiny at 1536x768 in float32.
* A forward pass on a T4: not measured. 0.21 TFLOP a picture at 45 % of the card's 8.1 TFLOP/s are 0.06 s.
* Kaggle's cores: guessed 2.5 times slower than those of the measurements. Disks, starts and writing: guesses.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

FILES = 32_000
LIMIT_S, KAGGLE_S = 8.5 * 3600, 9 * 3600.0  # what the kernel allows itself, and what Kaggle allows the kernel
HOUR = 3600.0


@dataclass(frozen=True)
class FileKind:
    """Files that are alike: share of the test set, CPU seconds to an image, coded bytes, whether it is JPEG 2000."""

    name: str
    share: float
    cpu_s: float
    coded: float
    wavelet: bool


# benchmarks/prepare.py: the competition's mix of machines, CPU ms of "rsna_kit" at 1536x768, mean coded size.
KINDS = (
    FileKind("2776x2082 .70", 0.2961, 0.048, 3.6e6, False), FileKind("4096x3328 .70", 0.2234, 0.098, 7.0e6, False),
    FileKind("4096x3328 .70 noisy", 0.0098, 0.121, 11.0e6, False),
    FileKind("5355x4915 .70 noisy", 0.0098, 0.219, 15.7e6, False),
    FileKind("2776x2082 .90", 0.1503, 0.396, 2.9e6, True), FileKind("4096x3328 .90", 0.1590, 0.228, 5.3e6, True),
    FileKind("5355x4915 .90", 0.1516, 0.170, 3.1e6, True),
)  # fmt: skip


@dataclass(frozen=True)
class Costs:
    """What work takes. Seconds are of a core of the measurements unless said otherwise; see the module's docstring."""

    cores: int = 4
    slower: float = 2.5  # Kaggle's cores than those of the measurements
    halving: float = 0.27  # of the decoding, for each further halving of JPEG 2000
    render_s: float = 0.020  # of `cpu_s` that no halving saves; also what a picture costs that a GPU decoded
    disk: float = 200e6  # bytes a second
    stream: float = 60e6  # bytes a second of one reader
    latency_s: float = 0.005  # to open a file
    size: float = 1.2  # files than those of the measurements: the hidden test has some 180 GB
    head_s: float = 0.0003  # to parse the head of a file
    proof_s: float = 60.0  # wall time
    start_s: float = 180.0  # wall time before the clock begins: the image, wheels, imports
    restart_s: float = 60.0  # wall time until a new process of a run that died is where it was: imports
    trace_s: float = 30.0  # of the first batch of each member
    write_s: float = 1.0  # wall time of saving everything
    gpu_s: float | None = 0.06  # wall time of a forward pass of one member for a picture; None: no GPU
    forward_s: float = 2.94  # the same on CPU cores
    gpu_decode_s: float = 0.25  # wall time of a picture; of 2023's public notebooks


@dataclass(frozen=True)
class Scenario:
    """What happens, and to whom."""

    name: str
    costs: Costs = field(default_factory=Costs)
    members: int = 4
    tta: bool = False
    decoding_gpus: int = 0
    stall: tuple[float, float] | None = None  # the disk answers nothing: from when, for how long
    lost_decoder: float | None = None  # the last decoding GPU fails on everything from then on
    lost_scorer: float | None = None  # the GPU that scores is lost, and the process with it
    spare: bool = True  # another GPU scores in the next process, else the CPU


_DEFAULT = Costs()
SCENARIOS = (
    Scenario("normal"),
    Scenario("normal, with TTA", tta=True),
    Scenario("slow disk, 8 MB/s", replace(_DEFAULT, disk=8e6)),
    Scenario("hopeless disk, 4 MB/s", replace(_DEFAULT, disk=4e6)),
    Scenario("disk stalls for 20 min", stall=(HOUR, 1200.0)),
    Scenario("one slow core", replace(_DEFAULT, cores=1, slower=8.0)),
    Scenario("two GPUs decode, one is lost", decoding_gpus=2, lost_decoder=0.25 * HOUR),
    Scenario("the GPU that scores is lost", lost_scorer=HOUR),
    Scenario("the only GPU is lost", lost_scorer=HOUR, spare=False),
    Scenario("overloaded: 20 members, TTA", members=20, tta=True),
    Scenario("CPU only", replace(_DEFAULT, gpu_s=None)),
)
