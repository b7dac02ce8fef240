"""Specs as text: TOML files and the command line's `--set a.b=TOML`, turned into plain mappings.

Nothing is checked here but the text itself; `model/spec.py` judges what it says. Errors name the
file, the line and the column.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from agent.errors import InvalidSpec, Problem

MAX_TEXT_CHARS = 4 << 20
_AT = re.compile(r"(?P<what>.*) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end.*)\)", re.S)
_BARE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./:@+-]*", re.ASCII)


def parse_toml(text: str, file: str = "spec") -> dict[str, Any]:
    """Return what a TOML text says; raises InvalidSpec naming file, line and column."""
    if len(text) > MAX_TEXT_CHARS:
        raise InvalidSpec([Problem(file, f"is longer than {MAX_TEXT_CHARS} characters")])
    try:
        return tomllib.loads(text if text.endswith("\n") else f"{text}\n")
    except tomllib.TOMLDecodeError as error:
        raise InvalidSpec([Problem(file, _explained(str(error), text))]) from error
    except ValueError as error:  # a number of thousands of digits
        raise InvalidSpec([Problem(file, f"holds a number that is too long: {error}")]) from error
    except RecursionError as error:
        raise InvalidSpec([Problem(file, "is nested too deep")]) from error


def _explained(message: str, text: str) -> str:
    match = _AT.fullmatch(message)
    if match is None:
        return f"is not TOML: {message}"
    what = match["what"]
    if match["line"] is None:
        return f"is not TOML: {what} at the end, line {len(text.splitlines())}"
    line = text.splitlines()[int(match["line"]) - 1 : int(match["line"])]
    shown = f": {line[0].strip()[:80]}" if line else ""
    return f"is not TOML: {what} at line {match['line']}, column {match['column']}{shown}"


def apply_sets(data: Mapping[str, Any], sets: Iterable[str]) -> dict[str, Any]:
    """Return `data` with each `a.b=VALUE` put in place; the later one wins.

    VALUE is TOML; a bare word such as `http` or `img:1` is taken as text. Raises InvalidSpec naming
    each one that is neither.
    """
    result: dict[str, Any] = dict(data)
    problems: list[Problem] = []
    for given in sets:
        key, equals, value = given.partition("=")
        if not equals or not key.strip():
            problems.append(Problem(f"--set {given[:80]}", "must be written a.b=VALUE"))
            continue
        try:
            result = _merged(result, _one_set(key, value.strip()))
        except ValueError as error:
            problems.append(
                Problem(f"--set {given[:80]}", f'is not TOML: {error}; text goes in quotes: "…"')
            )
    if problems:
        raise InvalidSpec(problems)
    return result


def _one_set(key: str, value: str) -> dict[str, Any]:
    try:
        return tomllib.loads(f"{key} = {value}\n")
    except tomllib.TOMLDecodeError:
        if not _BARE.fullmatch(value):
            raise
        return tomllib.loads(f"{key} = {json.dumps(value)}\n")


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(value, dict) and isinstance(below, Mapping)
        merged[key] = _merged(below, value) if both and below is not None else value
    return merged
