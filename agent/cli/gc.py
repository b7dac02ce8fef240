"""`kindling gc`: give back what the image store holds and nothing needs."""

from __future__ import annotations

import click

from agent.cli import answer, table
from agent.cli.answer import Json, json_option, print_json
from agent.cli.client import connect

# Millions of files may have to go.
_COLLECT_S = 900.0


@click.command()
@click.option("--dry-run", is_flag=True, help="Remove nothing, say what would go.")
@json_option
def command(dry_run: bool, as_json: bool) -> None:
    """Remove images that no function needs, and what is left of broken pulls and imports.

    What a deployed version or an instance needs stays, and what images.keep names. The node does
    this by itself when its image store passes images.gc_high_percent of its limit, and then only as
    far as images.gc_low_percent.
    """
    from agent._pb.worker.v1 import worker_pb2 as pb

    with connect() as client:
        request = pb.CollectGarbageRequest(dry_run=dry_run)
        reply = client.ask(
            "CollectGarbage", request, pb.CollectGarbageResponse, within_s=_COLLECT_S
        )
    found = answer.garbage(reply, dry_run=dry_run)
    if as_json:
        print_json(found)
    else:
        _show(found)


def _show(found: Json) -> None:
    rows = [
        [one["kind"], one["name"], table.size(one["freed_bytes"]), str(one["freed_files"])]
        for one in found["removed"]
    ]
    if rows:
        table.print_table(("KIND", "NAME", "GIVES BACK", "FILES"), rows)
    freed = f"{table.size(found['freed_bytes'])} and {found['freed_files']} files"
    done = "would give back" if found["dry_run"] else "gave back"
    click.echo(f"{done} {freed}" if rows else "nothing to remove")
    used, most = table.size(found["used_bytes"]), table.size(found["max_bytes"])
    click.echo(f"the image store holds {used} of at most {most}")
