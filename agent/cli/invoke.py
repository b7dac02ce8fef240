"""`kindling invoke`: one call of a function; the reply's body goes to stdout as it is.

A job is told apart by its deployed spec and handed to `job.py`. What the call cost and where a cold
start spent its time is shown by --trace, or stands in the JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli import answer, job, trace
from agent.cli.answer import json_option, print_json
from agent.cli.client import ASK_S, Client, connect
from agent.cli.outcome import Unsuccessful

if TYPE_CHECKING:
    from agent._pb.worker.v1 import worker_pb2 as pb

HTTP_FAILURE = 400


def _data(_context: click.Context, option: click.Parameter, given: str | None) -> bytes:
    """Read what --data names: text, @FILE, or @- for stdin."""
    if given is None or not given.startswith("@"):
        return (given or "").encode("utf-8", "surrogateescape")
    if given == "@-":
        return sys.stdin.buffer.read()
    try:
        return Path(given[1:]).read_bytes()
    except OSError as error:
        raise click.BadParameter(f"{given[1:]}: {error.strerror}", param=option) from None


def _headers(
    _context: click.Context, option: click.Parameter, given: tuple[str, ...]
) -> list[tuple[str, bytes]]:
    pairs = []
    for text in given:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise click.BadParameter(f"{text!r} is not 'Name: value'", param=option)
        pairs.append((name.strip(), value.strip().encode("utf-8", "surrogateescape")))
    return pairs


@click.command()
@click.argument("name")
@click.option(
    "--data",
    metavar="TEXT|@FILE",
    callback=_data,
    help="The event or request body; @- reads stdin.",
)
@click.option("--method", help="HTTP method; makes this an HTTP call.")
@click.option("--path", help="Path and query, encoded; makes this an HTTP call.")
@click.option(
    "--header",
    "headers",
    metavar="'NAME: VALUE'",
    multiple=True,
    callback=_headers,
    help="A header of the request; repeatable.",
)
@click.option("--qualifier", default="", help="LATEST (the default) or a version.")
@click.option("--async", "asynchronous", is_flag=True, help="Return once the call is accepted.")
@click.option("--wait", is_flag=True, help="Wait for a job's end; print its log and exit code.")
@click.option("--trace", "traced", is_flag=True, help="Show cold start and cost on stderr.")
@json_option
def command(
    *,
    name: str,
    data: bytes,
    method: str | None,
    path: str | None,
    headers: list[tuple[str, bytes]],
    qualifier: str,
    asynchronous: bool,
    wait: bool,
    traced: bool,
    as_json: bool,
) -> None:
    """Call the function NAME and print the body of its reply.

    Without --method and --path this is an event call in the function's own contract, the same as
    POST /invoke/NAME at the HTTP endpoint. With either it is passed through to the function's
    server, as ANY /http/NAME/PATH is. A job prints its call id.

    Exits with 1 when the call failed or was answered with a status of 400 or above; the body is
    printed all the same.

    \b
    Examples:
      kindling invoke hello --data '{"name": "world"}'
      kindling invoke site --path '/search?q=fire' --header 'Accept: text/html'
      kindling invoke report --data @event.json --wait
    """
    from agent._pb.worker.v1 import worker_pb2 as pb

    if asynchronous and wait:
        raise click.UsageError("--async returns at once, --wait does not: choose one")
    with connect() as client:
        spec = _spec(client, name, qualifier)
        if spec.kind == "job":
            if method or path:
                raise click.UsageError(f"{name} is a job: it takes no --method and no --path")
            job.run(
                client,
                pb.RunJobRequest(name=name, qualifier=qualifier, event=data, wait=wait),
                _longest_s(spec),
                as_json=as_json,
                traced=traced,
            )
            return
        request = pb.InvokeRequest(
            name=name,
            qualifier=qualifier,
            kind="http" if method or path else "event",
            method=method or "",
            path=path or "",
            headers=[pb.Header(name=key, value=value) for key, value in headers],
            body=data,
        )
        # A keyword of Python, not of protobuf.
        setattr(request, "async", asynchronous)
        reply = client.ask("Invoke", request, pb.InvokeResponse, within_s=_longest_s(spec))
    _print(name, reply, traced=traced, as_json=as_json)


def _spec(client: Client, name: str, qualifier: str) -> pb.FunctionSpec:
    from agent._pb.worker.v1 import worker_pb2 as pb

    found = client.ask("Get", pb.GetRequest(name=name, qualifier=qualifier), pb.Function)
    return found.versions[0].spec if qualifier and found.versions else found.latest.spec


def _longest_s(spec: pb.FunctionSpec) -> float:
    """Return how long a call may take before the agent itself must have ended it."""
    return ASK_S + spec.queue_timeout_s + spec.startup_timeout_s + spec.timeout_s


def _print(name: str, reply: pb.InvokeResponse, *, traced: bool, as_json: bool) -> None:
    if as_json:
        print_json(answer.invocation(reply))
    else:
        stdout = sys.stdout.buffer
        stdout.write(reply.body)
        if sys.stdout.isatty() and reply.body and not reply.body.endswith(b"\n"):
            stdout.write(b"\n")
        stdout.flush()
    if traced:
        trace.show(reply)
    if reply.HasField("error") or reply.status >= HTTP_FAILURE:
        raise _failed(name, reply)


def _failed(name: str, reply: pb.InvokeResponse) -> Unsuccessful:
    more: dict[str, object] = {"status": reply.status, "request_id": reply.request_id}
    if not reply.HasField("error"):
        # The function's own words: an answer, for all that the agent knows.
        return Unsuccessful(
            "CallFailed", f"{name} answered {reply.status}", {**more, "fault": "function"}
        )
    error = reply.error
    why = error.message.splitlines()[0] if error.message else error.kind
    more |= {"fault": error.fault, "kind": error.kind}
    return Unsuccessful("CallFailed", f"{name} failed ({error.kind}, {reply.status}): {why}", more)
