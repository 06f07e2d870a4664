"""The person's own credentials → what a run says, without them, and which of them it said.

In a sandbox a kernel cannot see them; a plain process can read every file that they lie in.
"""

from __future__ import annotations

from collections.abc import Mapping

from rsna_lab.kaggle.credentials import known_secrets


def own_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Every secret in the environment and in Kaggle's files → what a person calls it; values are never shown."""
    names = {value: name for name, value in environment.items()}
    return {value: names.get(value, "your Kaggle credentials") for value in known_secrets(environment)}


class Censor:
    """Takes secrets out of a stream, wherever it is cut into pieces; `found` says what they are called.

    What may be the beginning of a secret is held back until the next piece shows whether it is.

    Example:
        >>> censor = Censor({"abcd": "a key"})
        >>> censor(b"x ab"), censor(b"cd y"), censor(b"a"), censor.rest(), censor.found
        (b'x ', b'*** y', b'', b'a', ['a key'])
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        longest_first = sorted(secrets.items(), key=lambda item: -len(item[0]))
        self._secrets = {value.encode(): name for value, name in longest_first}
        self._held = b""
        self.found: list[str] = []

    def __call__(self, piece: bytes) -> bytes:
        """What can be passed on now."""
        text = self._held + piece
        for secret, name in self._secrets.items():
            if secret in text:
                text = text.replace(secret, b"***")
                self.found += [name] if name not in self.found else []
        beginnings = (secret[:n] for secret in self._secrets for n in range(1, len(secret)))
        begun = max((len(beginning) for beginning in beginnings if text.endswith(beginning)), default=0)
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun]

    def rest(self) -> bytes:
        """What was held back, once nothing will follow."""
        rest, self._held = self._held, b""
        return rest
