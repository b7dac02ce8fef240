"""Every size and count the platforms promise, written out: a changed constant fails here.

Literal numbers on purpose. They are the platforms' own but for the lines marked `ours` in
`agent/model/limits.py`.
"""

from __future__ import annotations

import pytest

from agent.contracts.base import NodeFacts
from agent.contracts.bind import bind
from agent.model import limits
from agent.model.limits import LIMITS
from agent.model.records import FunctionVersion
from agent.model.spec_parse import parse_spec

# (contract, kind): request, response, async, header and target bytes of a bound contract. A job's
# event is one variable: `NAME=value` and its NUL take at most 131072 bytes.
BYTES = {
    ("fc", "event"): (33_554_432, 33_554_432, 131_072, 8_192, 4_096),
    ("fc", "http"): (33_554_432, 33_554_432, 131_072, 8_192, 4_096),
    ("fc2", "event"): (33_554_432, 33_554_432, 131_072, 8_192, 4_096),
    ("fc2", "http"): (33_554_432, 33_554_432, 131_072, 8_192, 4_096),
    ("fc2", "job"): (131_045, 4_096, 131_045, 8_192, 4_096),
    ("scf-web", "event"): (6_291_456, 6_291_456, 131_072, 32_768, 8_192),
    ("scf-web", "http"): (6_291_456, 6_291_456, 131_072, 32_768, 8_192),
    ("scf-job", "job"): (131_044, 6_291_456, 131_072, 32_768, 8_192),
    ("vercel", "http"): (4_718_592, 4_718_592, 0, 32_768, 16_384),
}
# Open files, most processes, writable layers in MB, bytes of own variables, bytes of the image
# unpacked and compressed (0: no limit of its own).
COUNTS = {
    "fc": (100_000, 1024, (512, 10_240), 4_096, 10_737_418_240, 0),
    "fc2": (100_000, 1024, (512,), 4_096, 10_737_418_240, 0),
    "scf-web": (1024, 1024, (512,), 0, 0, 1_073_741_824),
    "scf-job": (1024, 1024, (512,), 0, 0, 1_073_741_824),
    "vercel": (1024, 32_768, (512,), 0, 0, 0),
}
# Seconds: start, least and most of a call, initialize, pre-stop, pre-freeze, TERM before KILL.
SECONDS = {
    "fc": (120, 1, 86_400, 300, 90, 0, 30),
    "fc2": (120, 1, 86_400, 300, 90, 90, 30),
    "scf-web": (30, 1, 900, 0, 0, 0, 30),
    "scf-job": (120, 1, 86_400, 0, 0, 0, 30),
    "vercel": (120, 1, 800, 0, 0, 0, 30),
}


def test_no_contract_and_no_kind_is_left_out() -> None:
    kinds = {(name, kind) for name, table in LIMITS.items() for kind in table.kinds}
    assert kinds == set(BYTES)
    assert set(LIMITS) == set(COUNTS) == set(SECONDS)


@pytest.mark.parametrize(("name", "kind"), BYTES)
def test_bytes_of_a_call(name: str, kind: str) -> None:
    given = {"name": "f", "image": "kindling.local/f:1", "contract": name, "kind": kind}
    version = FunctionVersion("f", 1, parse_spec(given), None, "Ready", 0)
    bound = bind(version, NodeFacts()).limits
    assert BYTES[name, kind] == (
        bound.request_bytes,
        bound.response_bytes,
        bound.async_bytes,
        bound.header_bytes,
        bound.target_bytes,
    )


@pytest.mark.parametrize("name", COUNTS)
def test_what_an_instance_may_have(name: str) -> None:
    table = LIMITS[name]
    assert COUNTS[name] == (
        table.fds,
        table.pids.most,
        table.disk_mb,
        table.env_bytes,
        table.image_bytes,
        table.image_compressed_bytes,
    )


@pytest.mark.parametrize("name", SECONDS)
def test_how_long_everything_may_take(name: str) -> None:
    table = LIMITS[name]
    assert SECONDS[name] == (
        table.start_s,
        table.call_s.least,
        table.call_s.most,
        table.initialize_s,
        table.pre_stop_s,
        table.pre_freeze_s,
        table.stop_grace_s,
    )


def test_what_linux_takes_and_what_a_reply_shows() -> None:
    assert limits.MAX_STRING_BYTES == 131_072
    assert limits.MAX_EXEC_BYTES == 2_097_152
    assert limits.LOG_TAIL_BYTES == 4_096
