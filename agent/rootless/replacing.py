"""How `supervise` becomes the installed code: an exec that keeps descriptors, or changes nothing.

The state goes through the environment, descriptors as plain numbers. What is in it, and when this
is done, is `supervise`'s.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent.rootless.sockets import OpenSockets

STATE_VARIABLE = "KINDLING_SUPERVISE_STATE"


def execute(command: Sequence[str], state: Mapping[str, Any], descriptors: Collection[int]) -> None:
    """Exec with these descriptors and no others; raises OSError with all as it was.

    Legal while signals are blocked: one between exec and the new handlers would end us.
    """
    try:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        os.environ[STATE_VARIABLE] = json.dumps(state)
        os.execv(command[0], list(command))
    except OSError:
        os.environ.pop(STATE_VARIABLE, None)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        raise


@contextmanager
def put_in_force(fresh: Path, config: Path) -> Iterator[None]:
    """Put `fresh`, if it is there, in the place of `config`; undone when what follows fails."""
    # A second name for the file: to go back then needs neither room nor a descriptor.
    before = config.with_suffix(".before")
    before.unlink(missing_ok=True)
    os.link(config, before)
    try:
        if fresh.exists():
            fresh.replace(config)
        yield
    except OSError:
        before.replace(config)
        raise


def take_state() -> dict[str, Any] | None:
    """Return what the process had before its exec, None for a fresh start."""
    state: dict[str, Any] | None = json.loads(os.environ.pop(STATE_VARIABLE, "null"))
    return state


def inherited(saved: Mapping[str, Sequence[Any]]) -> OpenSockets:
    """Return the descriptors of before an exec; no child gets them but those they are given to."""
    held = {name: (str(address), int(descriptor)) for name, (address, descriptor) in saved.items()}
    for _, descriptor in held.values():
        os.set_inheritable(descriptor, False)
    return held
