"""A kernel's source ↔ its SETTINGS, the one thing that may differ from push to push.

Kaggle's kernels get no environment variables of ours, so what a run is told has to stand in its source: in a dict named
SETTINGS, names and values plain strings. The file in the repository holds the defaults; a push fills a copy.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from rsna_kit.runtime.errors import UsageError, did_you_mean


def read_settings(source: str) -> dict[str, str]:
    """Name → value, as the source has them; empty for a script without SETTINGS.

    Example:
        >>> read_settings('SETTINGS = {"PRESET": "default"}')
        {'PRESET': 'default'}
    """
    return {name: str(node.value) for name, node in _nodes(source).items()}


def fill_settings(source: str, values: Mapping[str, str]) -> str:
    """The source with other values in its SETTINGS; everything else stays as it is, byte for byte.

    Raises:
        UsageError: a name that SETTINGS does not have.

    Example:
        >>> fill_settings('SETTINGS = {"PRESET": "default"}', {"PRESET": "smoke"})
        'SETTINGS = {"PRESET": "smoke"}'
    """
    nodes = _nodes(source)
    for name in values:
        if name not in nodes:
            known = f"It has {', '.join(nodes)}." if nodes else "It has none."
            raise UsageError(f"{name}: no setting of this kernel.{did_you_mean(name, nodes)} {known}")
    lines = source.encode().splitlines(keepends=True)
    # From the last to the first, so that the places of those before stay right. Offsets count bytes.
    for name, node in sorted(nodes.items(), key=lambda item: (item[1].lineno, item[1].col_offset), reverse=True):
        if name in values:
            row, line = node.lineno - 1, lines[node.lineno - 1]
            literal = json.dumps(values[name]).encode()
            lines[row] = line[: node.col_offset] + literal + line[node.end_col_offset :]
    return b"".join(lines).decode()


def _nodes(source: str) -> dict[str, Any]:
    """Where each value of SETTINGS stands.

    Raises:
        UsageError: SETTINGS is no plain dict of strings, each on one line.
    """
    for statement in ast.parse(source).body:
        if not isinstance(statement, ast.Assign) or [ast.unparse(name) for name in statement.targets] != ["SETTINGS"]:
            continue
        pairs = statement.value
        if not isinstance(pairs, ast.Dict) or not all(
            isinstance(node, ast.Constant) and isinstance(node.value, str) and node.lineno == node.end_lineno
            for node in [*pairs.keys, *pairs.values]
        ):
            raise UsageError(f"line {statement.lineno}: SETTINGS is no dict of strings, each on one line")
        return dict(zip((str(ast.literal_eval(key)) for key in pairs.keys if key), pairs.values, strict=True))
    return {}
