"""Shows on stderr what a call cost and where its cold start spent the time.

A terminal gets a bar per phase, a pipe one line. The same figures stand in `invoke --json`.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from agent.cli import answer, table

if TYPE_CHECKING:
    from agent._pb.worker.v1 import worker_pb2 as pb


def show(reply: pb.InvokeResponse | pb.Call) -> None:
    """Print cold start and meters of a call or of a job's run."""
    meters = answer.meters(reply.meters)
    if reply.HasField("cold_start"):
        _cold(answer.cold_start(reply.cold_start))
    elif meters["wall_ms"]:
        click.echo("warm: no start was needed", err=True)
    else:
        click.echo("no instance ran it", err=True)
        return
    said = [
        f"wall {meters['wall_ms']:.2f} ms",
        f"billed {meters['billed_ms']:g} ms",
        f"CPU {meters['cpu_ms']:.2f} ms" + ("" if meters["cpu_exact"] else " (apportioned)"),
        f"{meters['memory_gb_s']:.6f} GB-s",
    ]
    if meters["pull_ms"]:
        said.append(f"pull {meters['pull_gb_s']:.3f} GB-s")
    if meters["peak_memory_bytes"]:
        said.append(f"peak memory {table.size(meters['peak_memory_bytes'])}")
    click.echo(", ".join(said), err=True)


def _cold(cold: answer.Json) -> None:
    phases = list(cold["phases"].items())
    cached = f", found ready: {', '.join(cold['cached'])}" if cold["cached"] else ""
    total = f"cold start {cold['total_ms']:.2f} ms"
    if cold["pull_ms"]:
        fetched, here = table.size(cold["bytes_pulled"]), table.size(cold["bytes_cached"])
        waited = f"image: waited {cold['pull_ms'] / 1000:.2f} s for its pull"
        click.echo(f"{waited}, {fetched} fetched, {here} from cache", err=True)
    # FORCE_COLOR as rich and others read it: what is caught now is shown on a terminal later.
    if sys.stderr.isatty() or os.environ.get("FORCE_COLOR"):
        click.echo(f"{total}{cached}", err=True)
        for line in table.bars(phases, sum(value for _, value in phases)):
            click.echo(line, err=True)
    else:
        told = ", ".join(f"{name} {value:.2f}" for name, value in phases)
        click.echo(f"{total}: {told}{cached}", err=True)
