"""The owner filter as containerd runs it: layer on stdin, tar on stdout, payload on fd 3."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import oci

ROOT = Path(__file__).parents[2]
LAYER = oci.layer({"a": b"x" * 300000, "b": b"y"}, {"a": (1516583083, 0)}).tar


def zstd(data):
    return subprocess.run(["zstd", "-cq"], input=data, capture_output=True, check=True).stdout


def run(tmp_path, data):
    report = tmp_path / "report"
    payload = tmp_path / "payload"
    payload.write_bytes(b"\x0a\x05owner\x12\x20" + json.dumps({"report": str(report)}).encode())
    command = ["sh", "-c", 'exec "$@" 3<"$0"', payload, sys.executable]
    done = subprocess.run(
        [*command, "-m", "agent.containerd.owner_filter"],
        cwd=ROOT,
        input=data,
        capture_output=True,
        check=False,
    )
    told = json.loads(report.read_text()) if report.exists() else None
    return done, told


@pytest.mark.parametrize(
    "data",
    [
        LAYER,
        gzip.compress(LAYER),
        gzip.compress(LAYER[:5000]) + gzip.compress(LAYER[5000:]),
        gzip.compress(LAYER) + gzip.compress(b"") * 100 + bytes(600),
        zstd(LAYER),
        zstd(LAYER[:5000]) + zstd(LAYER[5000:]),
    ],
    ids=["plain", "gzip", "two gzips", "a few empty gzips", "zstd", "two frames"],
)
def test_a_layer_in_every_packing_is_filtered_and_reported(tmp_path, data):
    done, told = run(tmp_path, data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout) == len(LAYER)
    assert told == {
        "diff_id": f"sha256:{hashlib.sha256(LAYER).hexdigest()}",
        "applied": f"sha256:{hashlib.sha256(done.stdout).hexdigest()}",
        "files": 1,
        "example": "a",
        "id": 1516583083,
    }


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(LAYER)[:200],
        gzip.compress(LAYER) + b"garbage",
        gzip.compress(LAYER) + gzip.compress(b"") * 20_000,
        zstd(LAYER)[:60],
    ],
    ids=["cut gzip", "garbage behind gzip", "empty members", "cut zstd"],
)
def test_a_layer_that_cannot_be_read_gives_no_report(tmp_path, data):
    done, told = run(tmp_path, data)
    assert done.returncode == 1
    assert done.stderr
    assert told is None


def test_it_needs_nothing_but_the_standard_library(tmp_path):
    program = "import sys, agent.containerd.owner_filter as _; print(*sys.modules)"
    command = [sys.executable, "-S", "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    ours = {name for name in done.stdout.split() if name.startswith("agent")}
    used = {"agent.containerd.members", "agent.containerd.owner_filter"}
    assert ours == {"agent", "agent.containerd", *used}
