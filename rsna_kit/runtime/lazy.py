"""Import heavy packages only where they are used, with a message that says how to get them."""

from __future__ import annotations

import importlib
from types import ModuleType

from rsna_kit.runtime.errors import MissingDependencyError


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or say which extra of rsna-kit installs it.

    Args:
        module: dotted module name, e.g. `"tensorflow"`.
        extra: the extra in pyproject.toml that brings it, e.g. `"train"`.

    Raises:
        MissingDependencyError: the module cannot be imported; the cause is chained.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{module} cannot be imported ({error}). Install it with: pip install 'rsna-kit[{extra}]'"
            f" — or, on Kaggle, attach the wheels dataset."
        ) from error
