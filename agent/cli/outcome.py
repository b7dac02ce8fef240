"""How a command ends: its exit status, and what is said about an error on stderr.

0 it was done; 1 it failed; 2 wrong use; 130 Ctrl-C; 141 the reader of its output went away. An
error is one line first, then details; with `--json` it is one line of JSON, `{"error": {…}}`
(tests/schemas/error.json). Verbs raise AgentError or click's errors and print nothing themselves.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from agent.errors import AgentError, InvalidSpec

FAILED = 1
WRONG_USE = 2
INTERRUPTED = 130
READER_GONE = 141

GROUP = "image"
"""The verb that has verbs of its own."""


class Unsuccessful(AgentError):
    """The agent did answer, but the answer is a failure; it has been printed already."""

    def __init__(self, code: str, message: str, more: dict[str, Any]) -> None:
        super().__init__(message)
        self.code = code
        self.more = more


def status_of(run: Callable[[], object], arguments: Sequence[str]) -> int:
    """Run a command and return its exit status, having said on stderr what went wrong."""
    with _ctrl_c() as has_come:
        try:
            return _status_of(run, arguments, has_come)
        except Exception:
            # Libraries may make another error of an interrupt that comes in the middle of theirs.
            if has_come():
                return INTERRUPTED
            raise


@contextmanager
def _ctrl_c() -> Iterator[Callable[[], bool]]:
    """Tell whether Ctrl-C has come, where it raises KeyboardInterrupt as ever."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    come: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        come.append(number)
        signal.default_int_handler(number, frame)

    try:
        signal.signal(signal.SIGINT, interrupt)
    except ValueError:  # signals are heard in the main thread only
        yield lambda: False
        return
    try:
        yield lambda: bool(come)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _status_of(
    run: Callable[[], object], arguments: Sequence[str], has_come: Callable[[], bool]
) -> int:
    try:
        done = run()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return WRONG_USE
    except click.UsageError as error:
        _tell(error.format_message(), _usage(error), {"code": "WrongUse"}, arguments)
        return WRONG_USE
    except click.Abort:
        return INTERRUPTED
    except (AgentError, click.ClickException, OSError) as error:
        if has_come():
            return INTERRUPTED
        line, details, said = told(error)
        _tell(line, details, said, arguments)
        return FAILED
    return done if isinstance(done, int) else 0


def quiet_at_a_closed_pipe(run: Callable[[], object]) -> object:
    """Run a command; when nobody reads its output any more, end without a word."""
    try:
        done = run()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered would fail once more when the interpreter ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        return READER_GONE
    return done


def told(error: Exception) -> tuple[str, list[str], dict[str, Any]]:
    """Return an error's one line, its details, and the same as JSON values."""
    if isinstance(error, InvalidSpec):
        return _problems(error)
    if not isinstance(error, AgentError):
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        return text, [], {"code": "Failed"}
    first, *details = error.message.splitlines() or [error.code]
    said = {"code": error.code, "fault": error.fault, "retryable": error.retryable}
    said |= getattr(error, "more", {})
    if log := getattr(error, "log", ""):
        said["log"] = log.splitlines()
        details += [f"| {line}" for line in log.splitlines()]
    if after_s := getattr(error, "retry_after_s", 0.0):
        said["retry_after_s"] = after_s
        details.append(f"try again in {after_s:g} s")
    return first, details, said


def _problems(error: InvalidSpec) -> tuple[str, list[str], dict[str, Any]]:
    lines = [f"{problem.field}: {problem.message}" for problem in error.problems]
    said = {
        "code": error.code,
        "fault": error.fault,
        "retryable": False,
        "problems": [{"field": p.field, "message": p.message} for p in error.problems],
    }
    if len(lines) == 1:
        return lines[0], [], said
    return f"{len(lines)} problems:", lines, said


def _usage(error: click.UsageError) -> list[str]:
    if error.ctx is None:
        return []
    return [error.ctx.get_usage(), f"try '{error.ctx.command_path} --help'"]


def _tell(line: str, details: list[str], said: dict[str, Any], arguments: Sequence[str]) -> None:
    if wants_json(arguments):
        told_first = {"code": said["code"], "message": line, "fault": "caller", "retryable": False}
        click.echo(json.dumps({"error": told_first | said}), err=True)
        return
    words = [word for word in arguments if not word.startswith("-")]
    said_to = " ".join(["kindling", *words[: 2 if words[:1] == [GROUP] else 1]])
    click.echo(f"{click.style(f'{said_to}:', fg='red', bold=True)} {line}", err=True)
    for detail in details:
        click.echo(f"  {detail}", err=True)


def wants_json(arguments: Sequence[str]) -> bool:
    """Say whether `--json` is among the arguments, however wrong the others are."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options
