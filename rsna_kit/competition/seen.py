"""The patients a model has seen, as a digest in its bundle: a network that starts from it must not be judged by them.

Out-of-fold scores of such a network flatter, and so does every threshold chosen on them.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable

from rsna_kit.runtime.errors import TableError

_MARK_BYTES = 5


def digest_patients(patients: Iterable[str], others: str = "") -> str:
    """Patients as a text in which each can be looked up: 5 bytes of every id's SHA-256, sorted, in base64.

    Args:
        patients: ids.
        others: a digest whose patients are to be in this one, too.

    Raises:
        TableError: `others` is no digest.

    Example:
        >>> digest_patients(["7"]), digest_patients(["8"], digest_patients(["7"])) == digest_patients(["8", "7", "7"])
        ('eQJpm+Q=', True)
    """
    marks = {_mark(patient) for patient in patients} | _marks(others)
    return base64.b64encode(b"".join(sorted(marks))).decode()


def known_patients(digest: str, patients: Iterable[str]) -> list[str]:
    """Those of `patients` that are in a digest, sorted. One in 10^8 is taken for one of 10,000 others.

    Raises:
        TableError: it is no digest.
    """
    marks = _marks(digest)
    return sorted({str(patient) for patient in patients if _mark(patient) in marks})


def _mark(patient: str) -> bytes:
    return hashlib.sha256(str(patient).encode()).digest()[:_MARK_BYTES]


def _marks(digest: str) -> set[bytes]:
    try:
        content = base64.b64decode(digest, validate=True)
    except ValueError as error:
        raise TableError(f"digest of patients: got {digest[:40]!r}, expected base64 as a bundle has it") from error
    return {content[at : at + _MARK_BYTES] for at in range(0, len(content), _MARK_BYTES)}
