"""What the queue hands out, who can decode for it, and a file on its way through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from rsna_kit.dicom.codestream import StreamFacts
from rsna_kit.dicom.frame import EncodedFrame
from rsna_kit.imaging.render import Rendered
from rsna_kit.runtime.errors import DecodeError, ImageError


@dataclass(frozen=True)
class Outcome:
    """What became of one file: exactly one of `rendered` and `error` is set; `worker` says who decoded it."""

    image_id: str
    rendered: Rendered | None = None
    error: ImageError | None = None
    worker: str = "cpu"

    def failure(self) -> dict[str, str]:
        """The row for failures.csv: image_id, stage, reason."""
        assert self.error is not None
        return {"image_id": self.image_id, "stage": self.error.stage, "reason": str(self.error)}


class Device(Protocol):
    """A decoder of batches, such as `dicom.dali.DaliDecoder`."""

    name: str
    batch_size: int

    def takes(self, frame: EncodedFrame, facts: StreamFacts | None) -> bool:
        """Whether it can decode this kind of frame."""

    def decode(self, frames: Sequence[EncodedFrame]) -> list[np.ndarray | DecodeError]:
        """Stored pixels, or what is wrong, for each frame."""


@dataclass
class Task:
    """One file on its way. `frame` and `pixels` are set when a device has read or decoded it."""

    number: int
    image_id: str
    path: Path
    frame: EncodedFrame | None = None
    pixels: np.ndarray | None = None
    worker: str = "cpu"
