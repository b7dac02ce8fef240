"""What `kindling invoke --trace` says of a call that no instance ever ran."""

from __future__ import annotations

import pytest

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.cli import trace


@pytest.mark.parametrize("reply", [pb.InvokeResponse(status=503), pb.Call(error="no slot")])
def test_a_call_that_found_no_instance_is_not_called_warm(reply, capsys):
    trace.show(reply)
    assert capsys.readouterr().err == "no instance ran it\n"


def test_a_call_without_a_start_was_warm(capsys):
    reply = pb.InvokeResponse(status=200)
    reply.meters.wall.FromMilliseconds(2)
    trace.show(reply)
    assert capsys.readouterr().err.splitlines()[0] == "warm: no start was needed"
