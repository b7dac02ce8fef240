"""`kindling remove`: a function goes with all its versions and instances.

Calls and jobs in flight may take as long as the function's own limit allows. Who waits at a
terminal is told what for. The agent goes on with a removal when nobody waits any more.
"""

from __future__ import annotations

import sys
from functools import partial

import click

from agent.cli.answer import json_option, print_json
from agent.cli.client import Client, Refused, connect

# The longest that a contract gives calls in flight to end, plus the stop itself.
_DRAIN_S = 86_400.0 + 600.0
_SHOWN = 5


@click.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Kill its instances instead of draining them.")
@json_option
def command(name: str, force: bool, as_json: bool) -> None:
    """Remove the function NAME with all its versions, once its calls in flight have ended.

    Calls find it no more from the first moment on. Ctrl-C ends the waiting, not the removal;
    --force also ends what an earlier removal waits for.
    """
    from agent._pb.worker.v1 import worker_pb2 as pb

    with connect() as client:
        request = pb.RemoveRequest(name=name, force=force)
        late = None
        if sys.stderr.isatty() and not as_json and not force:
            late = partial(_explain, client, name, _longest_s(client, name))
        client.ask("Remove", request, pb.RemoveResponse, within_s=_DRAIN_S, late=late)
    if as_json:
        print_json({"removed": name})
    else:
        click.echo(f"removed {name}")


def _longest_s(client: Client, name: str) -> float | None:
    """Return how long the function's calls may take; None when it is not deployed (any more)."""
    from agent._pb.worker.v1 import worker_pb2 as pb

    try:
        found = client.ask("Get", pb.GetRequest(name=name), pb.Function)
    except Refused:
        return None
    return max(version.spec.timeout_s for version in [found.latest, *found.versions])


def _explain(client: Client, name: str, limit_s: float | None) -> None:
    """Say what is waited for."""
    from agent._pb.worker.v1 import worker_pb2 as pb

    listed = client.ask("ListInstances", pb.ListInstancesRequest(), pb.ListInstancesResponse)
    ids = [one.id for one in listed.instances if one.function == name]
    shown = (", ".join(ids[:_SHOWN]) or "its last calls") + (", …" if len(ids) > _SHOWN else "")
    most = f", {limit_s:g} s at most" if limit_s is not None else ""
    click.echo(
        f"{name} takes no more calls; waiting for {shown} to end{most}\n"
        f"'kindling remove {name} --force' ends them now; Ctrl-C ends the waiting, not the removal",
        err=True,
    )
