"""`kindling run`: checks configuration and host, takes the locks, and becomes the agent's parent.

What happens then is in `agent.rootless.parent`. After a reload signal the parent passes through
here again with everything held; then a wrong configuration changes nothing.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import click

from agent import config
from agent.errors import AgentError, FailedPrecondition
from agent.rootless import lock, parent, preflight, probe, settings

# Whatever the shell has: 077 would shut the group out of its sockets, and users of functions out of
# their root directory; 000 would let the group write what the agent reads.
UMASK = 0o022


@click.command()
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Configuration file (default {config.DEFAULT_FILE}, if there is one).",
)
@click.option("--check-config", is_flag=True, help="Only say whether the configuration is right.")
def command(file: Path | None, check_config: bool) -> None:
    """Run the agent in the foreground until TERM or Ctrl-C.

    Refuses to run as root: nothing of Kindling needs it at run time. HUP reloads configuration and
    code without ending a function.
    """
    os.umask(UMASK)
    held = parent.take_held()
    try:
        node = config.load(file)
        if check_config:
            return
        _refuse_root()
        if held is None:
            held = _prepare(node, file)
        else:
            _refuse_move(node, held)
            # The worker that is to take it may fail: until then the one before holds.
            _write(node.paths.run / settings.NEXT_CONFIG_NAME, node.model_dump_json(indent=1))
    except (AgentError, OSError) as error:
        if held is None:
            raise
        held.refused = str(error)
        parent.become(Path(held.config), held)
        return
    if not held.rootlesskit:
        held.config = str(node.paths.run / settings.CONFIG_NAME)
        _write(Path(held.config), node.model_dump_json(indent=1))
    parent.become(Path(held.config), held)


def _refuse_root() -> None:
    if os.geteuid() == 0:
        again = " ".join(["kindling", *sys.argv[1:]])
        raise FailedPrecondition(
            f"the agent does not run as root: run 'runuser -u {preflight.USER} -- {again}'"
        )


def _refuse_move(node: config.NodeConfig, held: parent.Inherited) -> None:
    """Refuse a reload that would make another agent of this one."""
    before = json.loads(Path(held.config).read_text("utf-8"))
    after = node.model_dump(mode="json")
    for section, name in (("paths", None), ("node", "name")):
        old, new = before[section], after[section]
        if (old != new) if name is None else (old[name] != new[name]):
            what = f"[{section}]" if name is None else f"[{section}] {name}"
            raise FailedPrecondition(f"{what} cannot change while functions run: stop and start")


def _prepare(node: config.NodeConfig, file: Path | None) -> parent.Inherited:
    """Check the host and take the locks; raises AgentError with one line per missing thing."""
    for directory in (node.paths.run, node.paths.data):
        with suppress(OSError):
            directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    house = settings.house_of(node.model_dump(mode="json"))
    if not os.access(house.run, os.W_OK | os.X_OK):
        _refuse_lack(house)
    # Before the checks: a running agent holds the ports, and should be named, not they.
    held = lock.acquire(house.run)
    try:
        _refuse_lack(house)
        shared = _lock_shared(house)
    except BaseException:
        lock.release(house.run, held)
        raise
    return parent.Inherited("", str(file.resolve()) if file else "", held, shared)


def _refuse_lack(house: settings.House) -> None:
    checks = probe.checks(house, starting=True)
    lines = [check.line() for check in checks if check.required and not check.ok]
    if lines:
        raise FailedPrecondition("\n".join(lines))


def _lock_shared(house: settings.House) -> list[int]:
    """Lock what two agents must not share; the sweep relies on the lock of the node's cgroup."""
    locks = [lock.acquire_shared(house.data, "give this one another [paths] data")]
    # Outlives every worker: the storage room relies on it.
    if house.writable == "slots" and house.slots_file.exists():
        locks.append(lock.acquire_shared(house.slots_file, "give this one other [paths] slots"))
    # Last, because this one is made if missing: from here on the parent cleans up.
    node_group = parent.layout().agent_directory(house.node).parent
    return [*locks, lock.acquire_shared(node_group, "give this one another [node] name")]


def _write(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text + "\n", "utf-8")
    fresh.replace(path)
