"""Pictures → addresses that hold the picture itself, so that a page stays one file."""

from __future__ import annotations

import base64

import numpy as np

from rsna_kit.runtime.errors import TableError
from rsna_kit.runtime.lazy import require


def embedded(content: bytes) -> str:
    """PNG, JPEG or WebP bytes as the source of an <img>.

    Raises:
        TableError: bytes of another format.
    """
    kind = {b"\x89P": "png", b"\xff\xd8": "jpeg", b"RI": "webp"}.get(content[:2])
    if kind is None:
        raise TableError(f"picture: got bytes that start with {content[:4]!r}, expected a PNG, JPEG or WebP file")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def image(picture: np.ndarray, alt: str, longest: int, quality: int) -> str:
    """An <img> with the picture in it, as WebP.

    Args:
        picture: uint8 (h, w), or (h, w, 3) in red, green, blue.
        alt: what it shows; must be escaped.
        longest: pixels of its longer side; a larger picture is shrunk.
        quality: of WebP, 1 to 100.

    Raises:
        TableError: an array that is no such picture.
    """
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or not picture.size:
        got = f"got a {picture.dtype} picture of shape {picture.shape}"
        raise TableError(f"{alt}: {got}, expected uint8 (h, w) or (h, w, 3)")
    cv2 = require("cv2", "train")
    shrink = longest / max(picture.shape[:2])
    if shrink < 1:
        size = [max(1, round(side * shrink)) for side in picture.shape[1::-1]]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    given = np.ascontiguousarray(picture[..., ::-1]) if picture.ndim == 3 else picture  # OpenCV counts blue first
    content = cv2.imencode(".webp", given, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()
    height, width = picture.shape[:2]
    return f'<img src="{embedded(content)}" alt="{alt}" width="{width}" height="{height}">'
