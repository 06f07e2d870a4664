"""A decoder run in a process of its own: what crashes, hangs or eats memory there costs one image, not the run.

Damaged lossless JPEG makes gdcm abort and dicomsdl corrupt its heap (`scripts/fuzz-decode` found both in minutes; see
docs/decoding.md). Those decoders are only asked after imagecodecs refused a frame, so the second that a process
costs is spent on damaged and odd files alone.

Child: `python -m rsna_kit.dicom.apart BACKEND`; the frame's facts as one JSON line and its codestream on standard
input; the array's type and shape as one JSON line and its bytes on standard output, or `{"failed": reason}`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from types import ModuleType

import numpy as np

from rsna_kit.dicom.frame import EncodedFrame

_PATIENCE_S = 30  # the slowest real file takes 2 s; a hang must not hold a decoding thread for the whole run
_MEMORY = 8 * 2**30
_FACTS = ("transfer_syntax", "rows", "columns", "bits_allocated", "bits_stored", "signed", "photometric")


def decode_apart(module: ModuleType, frame: EncodedFrame) -> np.ndarray:
    """`module.decode(frame)` in a child process.

    Raises:
        RuntimeError: the decoder failed, crashed or took too long; the message says which.
    """
    facts = json.dumps({name: getattr(frame, name) for name in _FACTS}).encode()
    command = [sys.executable, "-m", __name__, module.__name__]
    # The library may be importable only because the parent changed sys.path (an attached Kaggle dataset).
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(
            command, input=facts + b"\n" + frame.codestream, capture_output=True, timeout=_PATIENCE_S, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"gave nothing within {_PATIENCE_S} s") from error
    if done.returncode < 0:
        raise RuntimeError(f"crashed ({signal.Signals(-done.returncode).name})")
    head, newline, body = done.stdout.partition(b"\n")
    if done.returncode > 0 or not newline:
        said = done.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1]
        raise RuntimeError(f"ended with exit code {done.returncode}: {said}")
    answer = json.loads(head)
    if "failed" in answer:
        raise RuntimeError(answer["failed"])
    return np.frombuffer(body, answer["dtype"]).reshape(answer["shape"])


def main() -> int:
    """The child."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Native libraries print to file descriptor 1, too: only this copy of it leads to the parent.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    head, _, codestream = sys.stdin.buffer.read().partition(b"\n")
    frame = EncodedFrame(
        image_id="", path=None, codestream=codestream, windows=(), voi_function="LINEAR", voi_luts=(),
        modality_lut=None, slope=1.0, intercept=0.0, padding=None, **json.loads(head),
    )  # fmt: skip
    try:
        array = np.ascontiguousarray(importlib.import_module(sys.argv[1]).decode(frame))
        answer, body = {"dtype": array.dtype.str, "shape": array.shape}, array.tobytes()
    except Exception as error:  # whatever it is, the parent says it in one line
        answer, body = {"failed": str(error) or type(error).__name__}, b""
    out.write(json.dumps(answer).encode() + b"\n" + body)
    out.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
