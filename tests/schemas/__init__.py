"""Checks a value against a schema of this directory: the few JSON Schema keywords they use.

An unknown keyword is an error, so that nothing in a schema goes unchecked. Keys that a schema does
not describe are told too: what is printed and not described cannot be relied upon.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAMES = sorted(file.stem for file in HERE.glob("*.json"))

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
# What says nothing about a value by itself, or is looked at apart.
NOTES = {"$schema", "$defs", "title", "description", "type", "properties", "additionalProperties"}


@functools.cache
def schema(name: str) -> Any:
    return json.loads((HERE / f"{name}.json").read_text("utf-8"))


def faults(name: str, value: object) -> list[str]:
    """Return what in `value` the schema of that name does not allow or describe."""
    return _faults(schema(name), value, "$")


def _faults(rule: dict[str, Any], value: Any, at: str) -> list[str]:
    if "type" in rule and (wrong := _type(rule["type"], value, at)):
        return wrong
    found: list[str] = []
    for keyword, wanted in rule.items():
        if keyword not in NOTES:
            found += CHECKS[keyword](wanted, value, at)
    if isinstance(value, dict) and "type" in rule:
        found += _members(rule, value, at)
    return found


def _members(rule: dict[str, Any], value: dict[str, Any], at: str) -> list[str]:
    found = []
    described = rule.get("properties", {})
    others = rule.get("additionalProperties")
    for key, member in value.items():
        if key in described:
            found += _faults(described[key], member, f"{at}.{key}")
        elif others is not None:
            found += _faults(others, member, f"{at}.{key}")
        elif described:
            found.append(f"{at}.{key} is not described")
    return found


def _ref(wanted: str, value: Any, at: str) -> list[str]:
    file, _, path = wanted.partition(".json#/")
    rule = schema(file)
    for part in path.split("/"):
        rule = rule[part]
    return _faults(rule, value, at)


def _type(wanted: str | list[str], value: Any, at: str) -> list[str]:
    names = [wanted] if isinstance(wanted, str) else wanted
    for name in names:
        if isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool)):
            return []
    return [f"{at} is {value!r}, not {wanted}"]


def _any_of(wanted: list[dict[str, Any]], value: Any, at: str) -> list[str]:
    tried = [_faults(rule, value, at) for rule in wanted]
    return min(tried, key=len)


def _required(wanted: list[str], value: Any, at: str) -> list[str]:
    return [f"{at}.{key} is missing" for key in wanted if key not in value]


def _items(wanted: dict[str, Any], value: Any, at: str) -> list[str]:
    return [f for n, item in enumerate(value) for f in _faults(wanted, item, f"{at}[{n}]")]


def _enum(wanted: list[Any], value: Any, at: str) -> list[str]:
    return [] if value in wanted else [f"{at} is {value!r}, not one of {wanted}"]


def _pattern(wanted: str, value: Any, at: str) -> list[str]:
    return [] if re.search(wanted, value) else [f"{at} is {value!r}, not like {wanted}"]


CHECKS: dict[str, Callable[[Any, Any, str], list[str]]] = {
    "$ref": _ref,
    "anyOf": _any_of,
    "required": _required,
    "items": _items,
    "enum": _enum,
    "pattern": _pattern,
}
