"""Types and unknown fields of a spec: pydantic's findings, said in our words, all of them.

`plain` copies what came in and drops what was not given. `shaped` validates it; what is wrong is
told, taken out and replaced by its default, so that the rules can judge the rest in the same go.
Figures and relations between fields are not judged here: that is `model/spec_rules.py`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from agent.errors import Bug, InvalidSpec, Problem

MAX_DEPTH = 8
MAX_PROBLEMS = 100
MAX_DIGITS = 100  # no field needs more; Python turns no number of thousands of digits into text

Tree = dict[str, Any]
Loc = tuple[int | str, ...]
M = TypeVar("M", bound=BaseModel)

_SURROGATE = re.compile("[\ud800-\udfff]")
_MEANT = {
    "cpu": "cpu_millis",
    "cpus": "cpu_millis",
    "memory": "memory_mb",
    "timeout": "timeout_s",
    "entrypoint": "command",
    "cmd": "args",
    "environment_variables": "env",
    "envs": "env",
    "volumes": "mounts",
    "replicas": "scaling",
    "type": "kind",
}


def plain(data: object) -> tuple[Tree, list[Problem]]:
    """Copy a mapping of plain values without its Nones; odd values are told and left out.

    Raises InvalidSpec when it is no mapping at all.
    """
    if not isinstance(data, Mapping):
        raise InvalidSpec([Problem("spec", "must be a table of fields: name = …, image = …")])
    problems: list[Problem] = []
    return _tree(data, "", 0, problems), problems


def _tree(data: Mapping[Any, Any], path: str, depth: int, problems: list[Problem]) -> Tree:
    kept = {}
    for key, value in data.items():
        where = f"{path}.{key}" if path else str(key)
        if value is not None:
            ok, copied = _value(value, where, depth + 1, problems)
            if ok:
                kept[str(key)] = copied
    return kept


def _value(value: object, path: str, depth: int, problems: list[Problem]) -> tuple[bool, Any]:
    if depth > MAX_DEPTH:
        problems.append(Problem(path, f"is nested more than {MAX_DEPTH} deep"))
        return False, None
    if isinstance(value, Mapping):
        return True, _tree(value, path, depth, problems)
    if isinstance(value, list | tuple):
        items = [_value(v, f"{path}[{n}]", depth + 1, problems) for n, v in enumerate(value)]
        return all(ok for ok, _ in items), [item for _, item in items]
    if isinstance(value, str):
        return _text(value, path, problems)
    if isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
        problems.append(Problem(path, f"is a number of more than {MAX_DIGITS} digits"))
        return False, None
    if isinstance(value, bool | int | float):
        return True, value
    problems.append(
        Problem(path, f"cannot be a {type(value).__name__}; write it as text in quotes")
    )
    return False, None


def _text(value: str, path: str, problems: list[Problem]) -> tuple[bool, str]:
    if "\0" in value:
        problems.append(Problem(path, "holds a NUL byte, which no program can be given"))
        return False, value
    if not value.isascii() and _SURROGATE.search(value):
        problems.append(Problem(path, "holds half a surrogate pair; send valid UTF-8"))
        return False, value
    return True, value


def shaped(
    model: type[M], raw: Tree, with_defaults: Callable[[Tree], Tree], placeholders: Tree
) -> tuple[M, list[Problem]]:
    """Validate `raw` with defaults; return a model of what was right, and what was wrong."""
    problems: list[Problem] = []
    for _ in range(MAX_PROBLEMS):
        try:
            text = json.dumps(with_defaults(raw))
            return model.model_validate_json(text, strict=True), problems
        except ValidationError as error:
            details = error.errors(include_url=False, include_context=True)
        sent = raw
        for detail in details:
            loc = _raw_loc(sent, detail["loc"])
            problem = Problem(_dotted(loc), _said(model, loc, detail))
            if all(p.field != problem.field for p in problems):
                problems.append(problem)
            if detail["type"] == "missing" and loc[0] in placeholders:
                raw = {**raw, loc[0]: placeholders[str(loc[0])]}
            else:
                raw = _without(raw, loc)
        if raw == sent:
            raise Bug(f"defaults of a spec are themselves wrong: {details}")
    raise InvalidSpec(problems)


def _raw_loc(raw: Tree, loc: Loc) -> Loc:
    """Cut pydantic's location to what the sender wrote: no union tags."""
    node: Any = raw
    for n, part in enumerate(loc):
        inside = (isinstance(node, dict) and part in node) or (
            isinstance(node, list) and isinstance(part, int) and part < len(node)
        )
        if not inside:
            missing = isinstance(node, dict) and n == len(loc) - 1
            return loc if missing else loc[:n]
        node = node[part]
    return loc


def _dotted(loc: Loc) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "spec"


def _without(raw: Tree, loc: Loc) -> Tree:
    """Copy `raw` without the field at `loc`; a field inside a list takes the whole list along."""
    if not loc or not isinstance(loc[0], str):
        return {}
    head, rest = loc[0], loc[1:]
    child = raw.get(head)
    if rest and isinstance(child, dict) and not (len(rest) == 1 and rest[0] not in child):
        return {**raw, head: _without(child, rest)}
    return {key: value for key, value in raw.items() if key != head}


def _said(model: type[BaseModel], loc: Loc, detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if loc == ("egress",):
        return 'must be "all", "none" or a list of CIDRs such as ["10.0.0.0/8"]'
    match kind:
        case "extra_forbidden":
            return _unknown(model, loc)
        case "missing":
            return "is missing; it has no default"
        case "literal_error":
            return f"must be one of {context['expected'].replace(' or ', ', ')}"
        case "string_type":
            return "must be text in quotes"
        case "int_type" | "int_from_float" | "int_parsing":
            return "must be a whole number, without quotes"
        case "float_type" | "finite_number":
            return "must be a number, without quotes"
        case "bool_type":
            return "must be true or false"
        case "tuple_type" | "list_type":
            return 'must be a list: ["…", "…"]'
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must be a table of fields"
        case _:
            return detail["msg"][0].lower() + detail["msg"][1:]


def _unknown(model: type[BaseModel], loc: Loc) -> str:
    name = str(loc[-1])
    if "gpu" in name.lower():
        return "GPUs are not offered by this node; remove the field"
    known = _fields_at(model, loc[:-1])
    near = difflib.get_close_matches(name, known, 1, 0.6)
    meant = near[0] if near else _MEANT.get(name, "") if len(loc) == 1 else ""
    if meant:
        return f"is not a field; did you mean {meant}?"
    return f"is not a field; there are {', '.join(known)}"


def _fields_at(model: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    for part in loc:
        if isinstance(part, str):
            field = model.model_fields.get(part)
            inner = _model_in(field.annotation) if field else None
            model = inner or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_in(arg))), None)
