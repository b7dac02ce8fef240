"""From what a deploy gave, or a store kept, to a whole FunctionSpec: checked once, at the border.

`parse_spec` takes what TOML, JSON or proto gave (the names are the same in all three) and either
returns a whole, frozen spec or raises InvalidSpec with every problem at once. Types are checked by
`model/spec_shape.py`, defaults filled by `spec_defaults.py`, rules kept in `spec_rules.py`, figures
in `limits.py`; reading TOML is `spec_text.py`.
"""

from __future__ import annotations

import json
import re

from agent.errors import InvalidSpec
from agent.model.spec import FunctionSpec
from agent.model.spec_defaults import PLACEHOLDERS, with_defaults
from agent.model.spec_rules import broken_rules
from agent.model.spec_shape import plain, shaped

_PATH = re.compile(r"[.\[]")
_STAND_IN = {"name": "f", "image": "kindling.local/unreadable", "contract": "fc"}


def restored(data: bytes, version: int) -> FunctionSpec:
    """Read back what `canonical` wrote, as the version it became.

    Defaults are those it was deployed with. Raises InvalidSpec if a newer or damaged store holds
    something this agent would not deploy.
    """
    return parse_spec({**json.loads(data), "version": version})


def salvaged(data: bytes, name: str, version: int) -> FunctionSpec:
    """Return what can still be read of a stored spec that `restored` refuses; to be shown only.

    Fields that are wrong have their defaults, image and contract stand-ins.
    """
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    kept = dict(found) if isinstance(found, dict) else {}
    while True:
        try:
            spec = parse_spec({**_STAND_IN, **kept, "name": _STAND_IN["name"], "version": version})
        except InvalidSpec as error:
            wrong = {_PATH.split(problem.field)[0] for problem in error.problems} & kept.keys()
            kept = {field: value for field, value in kept.items() if wrong and field not in wrong}
        else:
            return spec.model_copy(update={"name": name})


def parse_spec(data: object) -> FunctionSpec:
    """Check what a deploy gave and return the whole spec.

    Raises InvalidSpec with every problem at once.

    `data` is a mapping of plain values (str, int, float, bool, list, mapping, None; None means
    not given). Numbers are never taken from text, except `version`; in `env` and `labels` a whole
    number becomes its text.
    """
    raw, problems = plain(data)
    spec, wrong = shaped(FunctionSpec, raw, with_defaults, PLACEHOLDERS)
    problems += wrong
    told = {problem.field for problem in problems}
    problems += [p for p in broken_rules(spec, told) if not _told(p.field, told)]
    if problems:
        raise InvalidSpec(problems)
    return spec


def _told(field: str, told: set[str]) -> bool:
    """Say whether a problem at this field, or at a table above it, is already told."""
    parts = field.replace("[", ".").split(".")
    return any(".".join(parts[:n]) in told for n in range(1, len(parts) + 1))
