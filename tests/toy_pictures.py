"""A prepared folder of toy pictures: grey noise on the left, air on the right, a bright disc where there is cancer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from rsna_kit.config import ImageConfig
from rsna_kit.data.shards import Prepared, open_prepared
from rsna_kit.data.writer import ShardWriter

SHARD_IMAGES = 16


def toy_table(count: int) -> pd.DataFrame:
    """Every fifth image has cancer; ids keep their leading zeros only as text."""
    numbers = range(count)
    return pd.DataFrame(
        {
            "patient_id": [f"{number // 2:04d}" for number in numbers],
            "image_id": [f"{number:05d}" for number in numbers],
            "prediction_id": [f"{number // 2:04d}_L" for number in numbers],
            "cancer": [int(number % 5 == 0) for number in numbers],
        }
    )


def toy_picture(image: ImageConfig, image_id: str, cancer: int) -> np.ndarray:
    """uint8 (h, w), the same for the same id."""
    rng = np.random.default_rng(int(image_id))
    picture = rng.integers(60, 140, (image.height, image.width), np.uint8)
    if cancer:
        centre = int(rng.integers(2, image.width // 2)), int(rng.integers(2, image.height - 2))
        cv2.circle(picture, centre, image.width // 8, 250, -1)
    picture[:, image.width * 3 // 4 :] = 0
    return picture


def toy_rows(image: ImageConfig, table: pd.DataFrame) -> Iterator[tuple[str, float, bytes]]:
    """What ShardWriter.write takes."""
    for row in table.itertuples():
        png = cv2.imencode(".png", toy_picture(image, row.image_id, row.cancer))[1].tobytes()
        yield row.image_id, float(row.cancer), png


def write_toys(root: Path, image: ImageConfig, count: int) -> Prepared:
    """A whole prepared folder."""
    table = toy_table(count)
    writer = ShardWriter(root, image, table)
    for number, start in enumerate(range(0, count, SHARD_IMAGES)):
        writer.write(number, toy_rows(image, table.iloc[start : start + SHARD_IMAGES]), [])
    writer.finish()
    return open_prepared(root, image)
