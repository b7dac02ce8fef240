"""How the last reload went, in one small file of the run directory: done, or failed and why.

`run` notes that one was asked for, `run` or `supervise` how it ended; the worker tells it to
whoever asks for the node's status. Each reload has a number, so that who asked knows its own.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

NAME = "reload.json"
RUNNING, DONE, FAILED = "running", "done", "failed"
# Ends the reason of a failure that changed nothing.
AS_IT_WAS = "the agent goes on as it was"


@dataclass(frozen=True, slots=True)
class ReloadOutcome:
    """One reload: its number (0: there was none), state, and the reason of a failure."""

    number: int = 0
    state: str = DONE
    reason: str = ""


def read(run: Path) -> ReloadOutcome:
    """Return the last reload; nothing that can be read is none."""
    with suppress(OSError, ValueError, TypeError):
        return ReloadOutcome(**json.loads((run / NAME).read_text("utf-8")))
    return ReloadOutcome()


def begin(run: Path) -> int:
    """Note that a reload was asked for; return its number."""
    number = read(run).number + 1
    _write(run, ReloadOutcome(number, RUNNING))
    return number


def end(run: Path, number: int, reason: str = "") -> None:
    """Note how a reload ended, unless a later one was asked for meanwhile."""
    if read(run).number == number:
        _write(run, ReloadOutcome(number, FAILED if reason else DONE, reason))


def _write(run: Path, outcome: ReloadOutcome) -> None:
    draft = (run / NAME).with_suffix(".new")
    with suppress(OSError):  # a full disk must not stop a reload
        draft.write_text(json.dumps(asdict(outcome)) + "\n", "utf-8")
        draft.replace(run / NAME)
