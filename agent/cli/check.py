"""`kindling check`: every prerequisite of this host on one line, ok or the command that mends it.

A row that the agent cannot do without is missing, and fails the check; any other one is advice.
Looking and judging are in `agent.rootless` (probe, preflight); this only becomes the agent's user
and prints.
"""

from __future__ import annotations

import json
import os
import pwd
import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from agent import config
from agent.errors import InvalidSpec
from agent.rootless import preflight, probe, settings
from agent.rootless.preflight import Check, Mark

STYLES = {Mark.OK: "green", Mark.ADVICE: "yellow", Mark.MISSING: "red"}


@click.command()
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Configuration file (default {config.DEFAULT_FILE}, if there is one).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(file: Path | None, as_json: bool) -> None:
    """Say what this host still lacks, with the command that mends it.

    Exits with 1 if anything the agent cannot do without is missing. Advice does not count.
    """
    found = _configuration(file) or _look(file)
    missing = any(check.mark is Mark.MISSING for check in found)
    if as_json:
        rows = [asdict(check) | {"mark": check.mark} for check in found]
        click.echo(json.dumps({"ok": not missing, "checks": rows}, indent=1))
    elif sys.stdout.isatty():
        _show(found)
    else:
        for check in found:
            click.echo(check.line())
    if missing:
        sys.exit(1)


def _configuration(file: Path | None) -> list[Check]:
    """Return what is wrong with the configuration: nothing else can be judged then."""
    try:
        config.load(file)
    except InvalidSpec as error:
        name = str(file or config.DEFAULT_FILE)
        return [
            Check(f"configuration {problem.field}", False, problem.message, f"editor {name}")
            for problem in error.problems
        ]
    return []


def _look(file: Path | None) -> list[Check]:
    house = settings.house_of(config.load(file).model_dump(mode="json"))
    try:
        user = pwd.getpwnam(preflight.USER)
    except KeyError:
        return [Check(f"user {preflight.USER}", False, "does not exist", "setup/host.sh")]
    if os.geteuid() == 0:
        # What root may do says nothing about the agent. There is no way back, and no need for one.
        os.initgroups(user.pw_name, user.pw_gid)
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    detail = f"uid {user.pw_uid}"
    if os.geteuid() != user.pw_uid:
        detail += f"; the rest is about uid {os.geteuid()}, who asks: see 'sudo kindling check'"
    known = Check(f"user {preflight.USER}", True, detail)
    return [known, *probe.checks(house, starting=False)]


def _show(found: list[Check]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in found:
        mend = "" if check.ok else f"\n[bold]{check.mend}[/]"
        style = STYLES[check.mark]
        table.add_row(f"[{style}]{check.mark}[/]", check.name, f"{check.detail}{mend}")
    console = Console(highlight=False)
    console.print(table)
    missing = sum(check.mark is Mark.MISSING for check in found)
    console.print(
        f"{missing} missing: the agent cannot start" if missing else "This host is ready."
    )
