"""`kindling image`: the images that this node has, and ways to give it more."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, TextIO

import click

from agent.cli import answer, table
from agent.cli.answer import json_option, print_json
from agent.cli.client import connect
from agent.cli.status import COLUMNS, image_row

if TYPE_CHECKING:
    from agent._pb.worker.v1 import worker_pb2 as pb

# The largest message that the agent takes in an import; see worker.proto.
CHUNK_BYTES = 1 << 20
MAX_PASSWORD = 64 << 10
# 10 GB, the largest image that any contract allows, at less than 3 MB/s.
_TRANSFER_S = 3600.0

Advance = Callable[[str, int, int], None]
"""Tells the progress of one part: its name, bytes done, bytes in all (0: not known)."""


@click.group()
def command() -> None:
    """List, pull, import, accelerate and remove images."""


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


@command.command("pull")
@click.argument("ref")
@click.option("--username", default="", help="Name at the registry; with --password-stdin.")
@click.option("--password-stdin", is_flag=True, help="Read the name's password from stdin.")
@click.option("--ca", type=click.File("r"), help="The registry's authority, as a PEM file.")
@json_option
def pull(ref: str, username: str, password_stdin: bool, ca: TextIO | None, as_json: bool) -> None:
    """Pull the image REF from its registry and unpack it."""
    from agent._pb.worker.v1 import worker_pb2 as pb

    registry = _registry(username, password_stdin=password_stdin)
    registry.ca_pem = ca.read() if ca is not None else ""
    done: pb.Image | None = None
    with connect() as client, _progress() as advance:
        given = registry if registry.ByteSize() else None
        request = pb.PrepareImageRequest(image=ref, registry=given)
        for step in client.follow("PrepareImage", request, pb.ImageProgress, within_s=_TRANSFER_S):
            advance(f"{step.phase} {table.short(step.name)}", step.bytes, step.total_bytes)
            if step.HasField("done"):
                done = step.done
    if done is None:
        raise click.ClickException(f"{ref}: the agent ended the pull without a result")
    if as_json:
        print_json(answer.image(done))
    else:
        click.echo(f"{done.name} {done.digest}")


@command.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--name", default="", help="Name for an archive's only image.")
@json_option
def import_(file: BinaryIO, name: str, as_json: bool) -> None:
    """Import an OCI or Docker archive, FILE or - for stdin; tar, optionally compressed."""
    from agent._pb.worker.v1 import worker_pb2 as pb

    with connect() as client, _progress() as advance:
        parts = _parts(file, name, advance)
        reply = client.send("ImportImage", parts, pb.ImportImageResponse, within_s=_TRANSFER_S)
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


@command.command("accelerate")
@click.argument("ref")
@click.option("--username", default="", help="Name at the registry; with --password-stdin.")
@click.option("--password-stdin", is_flag=True, help="Read the name's password from stdin.")
@json_option
def accelerate(ref: str, username: str, password_stdin: bool, as_json: bool) -> None:
    """Have the image REF start before it is here: index its layers, push the index beside it."""
    from agent._pb.worker.v1 import worker_pb2 as pb

    registry = _registry(username, password_stdin=password_stdin)
    request = pb.AccelerateImageRequest(image=ref, registry=registry)
    with connect() as client:
        reply = client.ask(
            "AccelerateImage", request, pb.AccelerateImageResponse, within_s=_TRANSFER_S
        )
    if as_json:
        print_json({"image": ref, "index_digest": reply.index_digest, "engine": reply.engine})
    else:
        click.echo(f"{ref} has an index for {reply.engine}: {reply.index_digest}")


def _registry(username: str, *, password_stdin: bool) -> pb.Registry:
    """Return what opens a registry; the password is read, for arguments are shown to everybody."""
    from agent._pb.worker.v1 import worker_pb2 as pb

    if bool(username) != password_stdin:
        raise click.UsageError("--username and --password-stdin go together")
    password = sys.stdin.read(MAX_PASSWORD).rstrip("\r\n") if password_stdin else ""
    return pb.Registry(username=username, password=password)


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


@contextmanager
def _progress() -> Iterator[Advance]:
    """Show bars on stderr if that is a terminal; a pipe sees the result only."""
    if not sys.stderr.isatty():
        yield lambda _part, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        parts: dict[str, TaskID] = {}

        def advance(part: str, done: int, total: int) -> None:
            if part not in parts:
                parts[part] = progress.add_task(part.strip(), total=None)
            progress.update(parts[part], completed=done, total=total or None)

        yield advance
