"""`kindling deploy`: a spec from a file, from options, or both, checked whole before it is sent.

What a spec may say is `agent/model/spec.py`'s business, here as in the agent; checking it on this
side too shows every problem at once, with names that the wire would have lost. The agent has the
last word.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli import answer
from agent.cli.answer import json_option, print_json
from agent.cli.client import ASK_S, PULL_S, connect
from agent.errors import AgentError, InvalidSpec, Problem

if TYPE_CHECKING:
    from agent._pb.worker.v1 import worker_pb2 as pb


class NoGroups(AgentError):
    """A file with several services was given."""

    fault = "caller"
    code = "Unimplemented"


@click.command()
@click.argument(
    "file", required=False, type=click.Path(exists=True, dir_okay=False, allow_dash=True)
)
@click.option("--name", help="The function's name.")
@click.option("--image", help="Reference of a linux/amd64 image.")
@click.option("--contract", help="fc, fc2, scf-web, scf-job or vercel.")
@click.option("--kind", help="event, http or job; the contract has a default.")
@click.option(
    "--set",
    "sets",
    metavar="FIELD=TOML",
    multiple=True,
    help="Set any field of the spec, such as scaling.min=1 or env.MODE=fast; repeatable.",
)
@click.option("--wait", is_flag=True, help="Return when the image and scaling.min are ready.")
@json_option
def command(
    *,
    file: str | None,
    name: str | None,
    image: str | None,
    contract: str | None,
    kind: str | None,
    sets: tuple[str, ...],
    wait: bool,
    as_json: bool,
) -> None:
    """Deploy a function from a TOML FILE (- for stdin), from options, or from both.

    Options win over the file, --set over everything. An equal spec changes nothing; any change
    makes the next version.

    \b
    Examples:
      kindling deploy hello.toml --wait
      kindling deploy --name hello --image kindling.local/hello-event:1 --contract fc
      kindling deploy hello.toml --set memory_mb=256 --set env.MODE=fast
    """
    given = {"name": name, "image": image, "contract": contract, "kind": kind}
    given = {field: value for field, value in given.items() if value is not None}
    if file is None and not (given or sets):
        raise click.UsageError("give a FILE, or --name, --image and --contract")
    values = _values(file, given, sets)
    message = spec_message(values)
    _deploy(message, wait=wait, as_json=as_json)


def _values(file: str | None, given: Mapping[str, Any], sets: tuple[str, ...]) -> dict[str, Any]:
    from agent.model.spec_text import apply_sets, parse_toml

    values: dict[str, Any] = {}
    if file is not None:
        source = "stdin" if file == "-" else file
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        try:
            values = parse_toml(raw.decode("utf-8"), source)
        except UnicodeDecodeError as error:
            at = f"is not UTF-8 text: byte {error.start} is {raw[error.start]:#04x}"
            raise InvalidSpec([Problem(source, at)]) from None
    if "services" in values:
        raise NoGroups("service groups are not built in this release: deploy each service alone")
    return apply_sets({**values, **given}, sets)


def spec_message(values: Mapping[str, Any]) -> pb.FunctionSpec:
    """Check a spec as TOML has it and return it for the wire, with the fields that were given.

    Raises InvalidSpec with every problem.
    """
    from google.protobuf.json_format import ParseDict, ParseError

    from agent._pb.worker.v1 import worker_pb2
    from agent.model.spec_parse import parse_spec
    from agent.model.spec_wire import for_wire

    parse_spec(values)
    sent = for_wire(dict(values))
    if isinstance(sent.get("init"), bool):
        sent["init"] = str(sent["init"]).lower()
    for field in ("env", "labels"):
        if field in sent:
            sent[field] = {key: str(value) for key, value in sent[field].items()}
    try:
        return ParseDict(sent, worker_pb2.FunctionSpec())
    except ParseError as error:
        raise InvalidSpec([Problem("spec", f"cannot be sent: {error}")]) from error


def _deploy(message: pb.FunctionSpec, *, wait: bool, as_json: bool) -> None:
    from agent._pb.worker.v1 import worker_pb2

    request = worker_pb2.DeployRequest(spec=message, wait=wait)
    with connect() as client:
        reply = client.ask(
            "Deploy", request, worker_pb2.DeployResponse, within_s=PULL_S if wait else ASK_S
        )
    deployed = answer.version(reply.version)
    if as_json:
        warnings = list(reply.warnings)
        print_json({**deployed, "created": reply.created, "warnings": warnings})
        return
    for warning in reply.warnings:
        click.echo(f"warning: {warning}", err=True)
    done = "deployed" if reply.created else "unchanged"
    reason = f": {deployed['reason']}" if deployed["reason"] else ""
    click.echo(
        f"{done} {deployed['name']} version {deployed['version']}, {deployed['state']}{reason}"
    )
