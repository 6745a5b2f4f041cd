"""Credentials of connectors: the configuration names their place, they are sent, and shown to nobody."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from gateway.errors import ConfigError

#: What stands where a credential stood.
REDACTED = "[redacted]"
#: Shorter ones are words like ``EMPTY``, given to servers that ask for none; a result may contain them by right.
_RESULT_CHARS_MIN = 16


class Credential:
    """A secret that goes into a header and nowhere else.

    Args:
        value: the secret itself.
    """

    __slots__ = ("_forms", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        #: As it may come back in a peer's answer: plain, or as HTTP Basic sends it.
        self._forms = (value, base64.b64encode(value.encode()).decode())

    def __repr__(self) -> str:
        return "<Credential>"

    def header(self, name: str) -> Mapping[str, str]:
        """As a header: a bearer token in ``authorization`` (RFC 6750), as it is in any other one."""
        return {name: f"Bearer {self._value}" if name.lower() == "authorization" else self._value}

    def basic(self) -> Mapping[str, str]:
        """As HTTP Basic (RFC 7617); the value is ``user:password``."""
        return {"authorization": f"Basic {self._forms[1]}"}

    @property
    def has_user(self) -> bool:
        """Whether it is written ``user:password``."""
        return ":" in self._value

    def redact(self, text: str) -> str:
        """The text without the secret: servers have repeated a wrong key in their error message."""
        for form in self._forms:
            text = text.replace(form, REDACTED)
        return text

    def redact_result(self, data: bytes) -> bytes:
        """The bytes of a result without the secret, as long as it cannot be an ordinary word."""
        if len(self._value) < _RESULT_CHARS_MIN:
            return data
        for form in self._forms:
            data = data.replace(form.encode(), REDACTED.encode())
        return data


def credential(key: str, option: str, text: str, *, token: bool = True) -> Credential | None:
    """Take a credential out of an option, whose reference to a variable or a file has been followed already.

    Args:
        key: the connector's, for messages.
        option: name of the option, for messages.
        text: the secret; empty for none.
        token: it is sent as it is; else encoded (HTTP Basic), so that any printable text is right.

    Raises:
        ConfigError: it cannot be a credential; never shows it.
    """
    if not text:
        return None
    text = text.strip()
    # Anything else would be refused as a header later, by a library that quotes it in its message.
    if not text or not (all("!" <= letter <= "~" for letter in text) if token else text.isprintable()):
        kind = "visible ASCII" if token else "printable"
        raise ConfigError(f"options of {key}: {option}: a credential is one line of {kind} characters")
    return Credential(text)
