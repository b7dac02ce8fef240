"""`kindling undrain`: the node takes work again."""

from __future__ import annotations

import click

from agent.cli.answer import json_option, print_json
from agent.cli.client import connect


@click.command()
@json_option
def command(as_json: bool) -> None:
    """Take work again after `kindling drain`."""
    from agent._pb.worker.v1 import worker_pb2 as pb

    with connect() as client:
        client.ask("Undrain", pb.UndrainRequest(), pb.UndrainResponse)
    if as_json:
        print_json({"draining": False})
    else:
        click.echo("the node takes work again")
