"""`kindling image`: the images that this node has, and ways to give it more."""

from __future__ import annotations

import json
import os
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from agent.cli import answer, table
from agent.cli.answer import json_option, print_json
from agent.cli.client import connect
from agent.cli.image_pull import TRANSFER_S, pull, registry_of
from agent.cli.progress import Advance, bars
from agent.cli.status import COLUMNS, image_row

if TYPE_CHECKING:
    from agent._pb.worker.v1 import worker_pb2 as pb

# The largest message that the agent takes in an import; see worker.proto.
CHUNK_BYTES = 1 << 20


class _Archive(click.File):
    """A file as click opens it, - for stdin; a directory stays a path."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and Path(value).is_dir():
            return Path(value)
        return super().convert(value, param, ctx)


@click.group()
def command() -> None:
    """List, show, pull, import, index and remove images."""


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


@command.command("inspect")
@click.argument("ref")
@json_option
def inspect(ref: str, as_json: bool) -> None:
    """Show the config and the layers of the image REF."""
    from agent._pb.worker.v1 import worker_pb2 as pb

    with connect() as client:
        reply = client.ask("InspectImage", pb.InspectImageRequest(name=ref), pb.ImageDetail)
    found = answer.image_detail(reply)
    if as_json:
        print_json(found)
    else:
        _show(found)


def _show(found: answer.Json) -> None:
    image, config = found["image"], found["config"].get("config") or {}
    click.echo(f"{image['name']}\n{image['digest']}  {found['media_type']}")
    click.echo(
        f"{table.size(image['unpacked_bytes'])} on the disk, "
        f"{table.size(image['size_bytes'])} compressed, {image['form']}, "
        f"last used {table.ago(image['used_at'])}, "
        f"needed by {', '.join(image['used_by']) or 'nobody'}\n"
    )
    for key in sorted(config):
        for line in _lines(config[key]):
            click.echo(f"{key:<14}{line}")
    click.echo()
    rows = [
        [
            table.short(one["digest"]),
            table.size(one["unpacked_bytes"]),
            table.size(one["size_bytes"]),
        ]
        for one in found["layers"]
    ]
    table.print_table(("LAYER", "SIZE", "COMPRESSED"), rows)


def _lines(value: object) -> list[str]:
    """Return a config's value as a reader wants it: a variable or label a line, commands whole."""
    if isinstance(value, list) and all(isinstance(one, str) and "=" in one for one in value):
        return [str(one) for one in value]
    if isinstance(value, dict):
        return [f"{key}={one}" if one not in ({}, "") else str(key) for key, one in value.items()]
    return [value if isinstance(value, str) else json.dumps(value)] if value else []


@command.command("import")
@click.argument("file", type=_Archive("rb"))
@click.option("--name", default="", help="The image meant; what an only image is to be called.")
@click.option("--all", "everything", is_flag=True, help="Import every image, as the archive says.")
@json_option
def import_(file: BinaryIO | Path, name: str, everything: bool, as_json: bool) -> None:
    """Import an OCI or Docker archive: FILE, - for stdin, or an OCI layout's directory.

    A tar, as it is or compressed. Of several images --name chooses one, by a name of the archive's.
    """
    from agent._pb.worker.v1 import worker_pb2 as pb

    with connect() as client, _opened(file) as archive, bars() as advance:
        parts = _parts(archive, name, everything, advance)
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


@command.command("accelerate")
@click.argument("ref")
@click.option("--username", default="", help="Name at the registry; with --password-stdin.")
@click.option("--password-stdin", is_flag=True, help="Read the name's password from stdin.")
@json_option
def accelerate(ref: str, username: str, password_stdin: bool, as_json: bool) -> None:
    """Have the image REF start before it is here: index its layers, push the index beside it."""
    from agent._pb.worker.v1 import worker_pb2 as pb

    registry = registry_of(username, password_stdin=password_stdin)
    request = pb.AccelerateImageRequest(image=ref, registry=registry)
    with connect() as client:
        reply = client.ask(
            "AccelerateImage", request, pb.AccelerateImageResponse, within_s=TRANSFER_S
        )
    if as_json:
        print_json({"image": ref, "index_digest": reply.index_digest, "engine": reply.engine})
    else:
        click.echo(f"{ref} has an index for {reply.engine}: {reply.index_digest}")


def _parts(
    file: BinaryIO, name: str, everything: bool, advance: Advance
) -> Iterator[pb.ImportImageRequest]:
    from agent._pb.worker.v1 import worker_pb2 as pb

    size = _size(file)
    header = pb.ImportImageRequest.ImportHeader(name=name, size_bytes=size, all=everything)
    yield pb.ImportImageRequest(header=header)
    sent = 0
    while chunk := file.read(CHUNK_BYTES):
        yield pb.ImportImageRequest(chunk=chunk)
        sent += len(chunk)
        advance("importing", sent, size)


@contextmanager
def _opened(archive: BinaryIO | Path) -> Iterator[BinaryIO]:
    """Return an archive to read; a directory is packed on the way, by a thread."""
    if not isinstance(archive, Path):
        yield archive
        return
    source, sink = os.pipe()
    failures: list[OSError] = []
    packing = threading.Thread(target=_pack, args=(archive, sink, failures), daemon=True)
    try:
        with open(source, "rb") as file:
            packing.start()
            yield file
    finally:
        packing.join()
        if failures:  # the agent can only say that what came is not whole
            failed = failures[0]
            raise click.ClickException(f"{failed.filename or archive}: {failed.strerror or failed}")


def _pack(path: Path, sink: int, failures: list[OSError]) -> None:
    try:
        with open(sink, "wb") as file, tarfile.open(fileobj=file, mode="w|") as tar:
            tar.add(path, arcname=".")
    except BrokenPipeError:  # who reads it has had enough
        pass
    except OSError as error:
        failures.append(error)


def _size(file: BinaryIO) -> int:
    """Return a file's size; 0 for a pipe."""
    if not file.seekable():
        return 0
    begin = file.tell()
    end = file.seek(0, 2)
    file.seek(begin)
    return end - begin
