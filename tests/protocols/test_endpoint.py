"""Endpoints are read strictly, and never repeat a secret."""

from __future__ import annotations

import pytest

from protocols.base import Endpoint
from protocols.errors import EndpointError
from protocols.http import HTTPAdapter, HTTPLimits


@pytest.mark.parametrize(
    ("text", "url", "secure"),
    [
        ("http://10.0.0.1:8188", "http://10.0.0.1:8188", False),
        ("HTTPS://Host/v1/", "https://host:443/v1", True),
        ("ws://h", "ws://h:80", False),
        ("grpc://[::1]:8001", "grpc://[::1]:8001", False),
    ],
)
def test_parse(text: str, url: str, *, secure: bool) -> None:
    """Good addresses come out complete and in one form."""
    endpoint = Endpoint.parse(text, name="gpu0")
    assert (endpoint.url, endpoint.secure) == (url, secure)
    assert Endpoint.parse(endpoint.url, name="gpu0") == endpoint
    assert str(endpoint) == f"gpu0 ({url})"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host:80",
        "//host",
        "ftp://h:1",
        "http://",
        "http://h:0",
        "http://h:99999",
        "http://h:x",
        "grpc://h",
        "http://h/?q=1",
        "http://h#f",
        "http://a b",
    ],
)
def test_refused(text: str) -> None:
    """Anything else is refused with a typed error that validating models can report."""
    with pytest.raises(EndpointError) as caught:
        Endpoint.parse(text)
    assert isinstance(caught.value, ValueError)


def test_credentials_are_refused_and_not_repeated() -> None:
    """An address with a password is refused without showing it."""
    with pytest.raises(EndpointError) as caught:
        Endpoint.parse("http://user:s3cret@host:80")
    assert "s3cret" not in str(caught.value)


def test_adapter_refuses_other_schemes_and_impossible_limits() -> None:
    """A wrong scheme or a bound that cannot work is found at construction."""
    with pytest.raises(ValueError):
        HTTPAdapter(Endpoint.parse("ws://h"))
    for limits in ({"connections_max": 0}, {"request_timeout_s": float("inf")}, {"keepalive_s": -1.0}):
        with pytest.raises(ValueError):
            HTTPLimits(**limits)
