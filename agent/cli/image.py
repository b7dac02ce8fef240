"""`kindling image`: the images that this node has, and ways to give it more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

import click

from agent.cli import answer, table
from agent.cli.answer import json_option, print_json
from agent.cli.client import connect
from agent.cli.image_pull import TRANSFER_S, pull
from agent.cli.progress import Advance, bars
from agent.cli.status import COLUMNS, image_row

if TYPE_CHECKING:
    from agent._pb.worker.v1 import worker_pb2 as pb

# The largest message that the agent takes in an import; see worker.proto.
CHUNK_BYTES = 1 << 20


@click.group()
def command() -> None:
    """List, pull, import and remove images."""


command.add_command(pull)


@command.command("ls")
@json_option
def ls(as_json: bool) -> None:
    """List images."""
    from agent._pb.worker.v1 import worker_pb2 as pb

    with connect() as client:
        reply = client.ask("ListImages", pb.ListImagesRequest(), pb.ListImagesResponse)
    found = [answer.image(one) for one in reply.images]
    if as_json:
        print_json({"images": found})
    elif found:
        table.print_table(COLUMNS["IMAGE"], [image_row(one) for one in found])
    else:
        click.echo("no images: kindling image pull REF, or import FILE")


@command.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--name", default="", help="Name for an archive's only image.")
@json_option
def import_(file: BinaryIO, name: str, as_json: bool) -> None:
    """Import an OCI or Docker archive, FILE or - for stdin; tar, optionally compressed."""
    from agent._pb.worker.v1 import worker_pb2 as pb

    with connect() as client, bars() as advance:
        parts = _parts(file, name, advance)
        reply = client.send("ImportImage", parts, pb.ImportImageResponse, within_s=TRANSFER_S)
    if as_json:
        print_json({"images": [answer.image(one) for one in reply.images]})
        return
    for one in reply.images:
        click.echo(f"{one.name} {one.digest}")


@command.command("rm")
@click.argument("ref")
@json_option
def rm(ref: str, as_json: bool) -> None:
    """Remove the image REF; refused while a deployed function needs it."""
    from agent._pb.worker.v1 import worker_pb2 as pb

    with connect() as client:
        client.ask("RemoveImage", pb.RemoveImageRequest(name=ref), pb.RemoveImageResponse)
    if as_json:
        print_json({"removed": ref})
    else:
        click.echo(f"removed {ref}")


def _parts(file: BinaryIO, name: str, advance: Advance) -> Iterator[pb.ImportImageRequest]:
    from agent._pb.worker.v1 import worker_pb2 as pb

    size = _size(file)
    header = pb.ImportImageRequest.ImportHeader(name=name, size_bytes=size)
    yield pb.ImportImageRequest(header=header)
    sent = 0
    while chunk := file.read(CHUNK_BYTES):
        yield pb.ImportImageRequest(chunk=chunk)
        sent += len(chunk)
        advance("importing", sent, size)


def _size(file: BinaryIO) -> int:
    """Return a file's size; 0 for a pipe."""
    if not file.seekable():
        return 0
    begin = file.tell()
    end = file.seek(0, 2)
    file.seek(begin)
    return end - begin
