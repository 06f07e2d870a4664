"""Whichever `python3` a script was started with → the same script in the project's own .venv, where its packages are.

Every script imports this first. An interpreter that has the project's packages (.venv itself, or an environment of
one's own) is left alone. Any other, such as the `kaggle` program's on PATH, is replaced by .venv's; where there
is none yet, it is made as scripts/demo makes it. Nothing but the standard library is needed, of any Python 3.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
ROOT = SCRIPTS.parent
HOME = ROOT / ".venv"
# What pyproject.toml's dependencies are imported as; and packaging, which reads the names of wheels.
NEEDS = ("cv2", "dicomsdl", "imagecodecs", "numpy", "packaging", "pandas", "pydicom")


def enter(script: Path) -> None:
    """Start a script of this project again in .venv and do not return, unless this interpreter has all it needs.

    Args:
        script: what was started. Anything but a file in scripts/ is somebody else's program, and left alone.
    """
    lacking = ", ".join(name for name in NEEDS if importlib.util.find_spec(name) is None)
    if not lacking or not script.is_file() or script.resolve().parent != SCRIPTS:
        return
    python, environment = HOME / "bin" / "python", SCRIPTS / "environment"
    interrupted = (HOME / "made").is_file() and not (HOME / "installed").is_file()
    if interrupted or not python.is_file():
        if {"-h", "--help"} & set(sys.argv[1:]):  # asking costs nothing, as with scripts/demo
            print(f"{sys.modules['__main__'].__doc__}\nOptions are listed once there is a .venv: bash {environment}")
            sys.exit(0)
        print(f"{sys.executable} lacks {lacking}; the project's own .venv is set up", file=sys.stderr, flush=True)
        if subprocess.run(["bash", str(environment)]).returncode != 0:
            sys.exit(1)  # it has said why
    elif Path(sys.prefix).resolve() == HOME.resolve():
        sys.exit(f"Error: {HOME} lacks {lacking}. Make it anew: rm -r {HOME} && bash {environment}")
    words = getattr(sys, "orig_argv", ["python3", *sys.argv])[1:]
    os.execv(python, [str(python), *words])


enter(Path(sys.argv[0]))
sys.path.insert(0, str(ROOT))  # this checkout, whatever else is installed
