"""`kindling image pull`: fetches an image and shows how far it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import click

from agent.cli import answer
from agent.cli.answer import json_option, print_json_line
from agent.cli.client import PULL_S, connect

if TYPE_CHECKING:
    from agent._pb.worker.v1 import worker_pb2 as pb

# 10 GB, the largest image that any contract allows, at less than 3 MB/s.
TRANSFER_S = 3600.0
MAX_PASSWORD = 64 << 10

Show = Callable[["pb.ImageProgress"], None]


@click.command("pull")
@click.argument("ref")
@click.option("--username", default="", help="Name at the registry; with --password-stdin.")
@click.option("--password-stdin", is_flag=True, help="Read the name's password from stdin.")
@click.option(
    "--acceleration",
    type=click.Choice(["auto", "lazy", "eager"]),
    default="auto",
    show_default=True,
    help="lazy: mount it by its index and fetch the rest in the background.",
)
@click.option("--ca", type=click.File("r"), help="The registry's authority, as a PEM file.")
@json_option
def pull(
    ref: str,
    username: str,
    password_stdin: bool,
    acceleration: str,
    ca: TextIO | None,
    as_json: bool,
) -> None:
    """Pull the image REF from its registry and unpack it.

    A pull that is under way is joined; one that was interrupted goes on where it was. On a terminal
    a bar shows bytes, layers and the time left; with --json each step is a line, the image last.
    With --acceleration lazy an image that has an index starts before it is here whole; one that has
    none is fetched whole, as it is by default.
    """
    from agent._pb.worker.v1 import worker_pb2 as pb

    registry = registry_of(username, password_stdin=password_stdin)
    registry.ca_pem = ca.read() if ca is not None else ""
    done: pb.Image | None = None
    warnings: list[str] = []
    with connect() as client, _lines() if as_json else _bar() as show:
        given = registry if registry.ByteSize() else None
        request = pb.PrepareImageRequest(image=ref, registry=given, acceleration=acceleration)
        for step in client.follow("PrepareImage", request, pb.ImageProgress, within_s=PULL_S):
            if step.HasField("done"):
                done, warnings = step.done, list(step.warnings)
            else:
                show(step)
    if done is None:
        raise click.ClickException(f"{ref}: the agent ended the pull without a result")
    if as_json:
        print_json_line({"phase": "done", "image": answer.image(done), "warnings": warnings})
    else:
        for warning in warnings:
            click.echo(f"warning: {warning}", err=True)
        click.echo(f"{done.name} {done.digest}")


@contextmanager
def _lines() -> Iterator[Show]:
    """Print every step as a line of JSON."""
    yield lambda step: print_json_line(answer.image_step(step))


@contextmanager
def _bar() -> Iterator[Show]:
    """Show one bar on stderr if that is a terminal; a pipe sees the result only."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[eta]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("resolving", total=None, eta="")

        def show(step: pb.ImageProgress) -> None:
            left = f"{step.eta.ToSeconds()} s left" if step.HasField("eta") else ""
            progress.update(
                task,
                description=_description(step),
                completed=step.image_bytes,
                total=step.image_total_bytes or None,
                eta=left,
            )

        yield show


def _description(step: pb.ImageProgress) -> str:
    if not step.layers:
        return step.phase
    return f"{step.phase} {step.layers_done}/{step.layers} layers"


def registry_of(username: str, *, password_stdin: bool) -> pb.Registry:
    """Return what opens a registry; the password is read, for arguments are shown to everybody."""
    from agent._pb.worker.v1 import worker_pb2 as pb

    if bool(username) != password_stdin:
        raise click.UsageError("--username and --password-stdin go together")
    password = sys.stdin.read(MAX_PASSWORD).rstrip("\r\n") if password_stdin else ""
    return pb.Registry(username=username, password=password)
