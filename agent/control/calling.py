"""The verbs for calls: Invoke, RunJob, GetCall, StopCall.

What the contract answers is a reply, whatever its status; only what no contract could answer is an
error here. The call itself is the node's to make (`node.py`).
"""

from __future__ import annotations

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.control.convert import call_to_proto, headers_from_proto, result_to_proto
from agent.control.deploying import named
from agent.control.node import InvokeCall
from agent.control.verbs import Verbs
from agent.errors import InvalidSpec, Problem

# A method is a token (RFC 9110, 9.1); a registered one has at most 17 letters.
METHOD_CHARS = 32
REQUEST_ID_CHARS = 128


class CallVerbs(Verbs):
    """What is called."""

    async def invoke(self, request: pb.InvokeRequest) -> pb.InvokeResponse:
        """Call a function."""
        if getattr(request, "async"):
            raise NotImplementedError("Invoke with async")
        return result_to_proto(await self.node.invoke(invoke_call(request)))

    async def run_job(self, request: pb.RunJobRequest) -> pb.Call:
        """Run a job."""
        record = await self.node.run_job(
            named(request.name),
            request.qualifier,
            request.event,
            wait=request.wait,
            request_id=checked_id(request.request_id),
        )
        return call_to_proto(record)

    async def get_call(self, request: pb.GetCallRequest) -> pb.Call:
        """Read a call's record."""
        return call_to_proto(await self.node.get_call(named(request.id, "id")))

    async def stop_call(self, request: pb.StopCallRequest) -> pb.Call:
        """Ask a call to stop."""
        return call_to_proto(await self.node.stop_call(named(request.id, "id")))


def invoke_call(request: pb.InvokeRequest) -> InvokeCall:
    """Check a request to call and return it; raises InvalidSpec with every problem."""
    problems = []
    if request.kind not in ("", "event", "http"):
        problems.append(Problem("kind", f"is {request.kind!r}; event or http"))
    method = request.method or ("POST" if request.body else "GET")
    if not (method.isascii() and method.isalpha() and len(method) <= METHOD_CHARS):
        problems.append(Problem("method", f"{method[:40]!r} is not an HTTP method"))
    path = request.path or "/"
    if not path.startswith("/") or not all("!" <= char <= "~" for char in path):
        problems.append(Problem("path", "must begin with / and hold visible ASCII only; encode it"))
    if problems:
        raise InvalidSpec(problems)
    return InvokeCall(
        name=named(request.name),
        qualifier=request.qualifier,
        kind="http" if request.kind == "http" else "event",
        method=method.encode(),
        path=path.encode(),
        headers=headers_from_proto(request.headers),
        body=request.body,
        request_id=checked_id(request.request_id),
        want_log_tail=request.log_tail,
    )


def checked_id(text: str) -> str:
    """Return a caller's own request id if it can stand in a header; raises InvalidSpec if not."""
    if len(text) > REQUEST_ID_CHARS or not all("!" <= char <= "~" for char in text):
        message = f"must have at most {REQUEST_ID_CHARS} visible ASCII characters"
        raise InvalidSpec([Problem("request_id", message)])
    return text
