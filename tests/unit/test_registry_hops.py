"""Where a registry may send its client, and how it is spoken to."""

from __future__ import annotations

import pytest

from agent.core.registry_hops import plain_http


@pytest.mark.parametrize(
    ("host", "plain"),
    [
        ("127.0.0.1:5000", True),
        ("127.8.9.1:80", True),
        ("localhost:5000", True),
        ("[::1]:5000", True),
        ("127.0.0.1:443", False),
        ("localhost", False),
        ("10.0.0.1:5000", False),
        ("registry.example:5000", False),
        ("docker.io", False),
    ],
)
def test_only_loopback_with_a_port_goes_without_tls(host: str, plain: bool) -> None:
    assert plain_http(host) is plain
