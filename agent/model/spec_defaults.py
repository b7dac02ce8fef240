"""Fill in what a spec leaves out, so that two specs that mean the same become equal bytes.

Works on plain mappings, before types are checked, and therefore touches only what is absent or what
it can read; wrong values pass through for `model/spec_shape.py` to tell. Figures come from
`model/limits.py`.
"""

from __future__ import annotations

from typing import Any

from agent.model.limits import HOOKS, LIMITS, QUEUE_SLACK_S, RANGES, ContractLimits

Tree = dict[str, Any]
MAX_VERSION_DIGITS = 10
ASSUMED_CONTRACT = "fc"
"""Whose figures fill the gaps while the contract itself is missing or wrong."""

PLACEHOLDERS: Tree = {"name": "unnamed", "image": "unnamed", "contract": ASSUMED_CONTRACT}
"""What stands for a required field once its absence is told, so that the rest can be judged."""


def with_defaults(raw: Tree) -> Tree:
    """Return a copy of `raw` with a value for every field that has a default."""
    limits = limits_of(raw)
    kind = raw["kind"] if isinstance(raw.get("kind"), str) else limits.kinds[0]
    start_s = raw.get("startup_timeout_s", limits.start_s)
    filled: Tree = {
        "version": None,
        "kind": kind,
        "command": None,
        "args": None,
        "secrets": [],
        "mounts": [],
        "port": _port(raw, limits, kind),
        "user": "",
        "memory_mb": int(RANGES["memory_mb"].default),
        "cpu_millis": int(RANGES["cpu_millis"].default),
        "pids": int(limits.pids.default),
        "disk_mb": limits.disk_mb[0],
        "timeout_s": limits.call_s.default,
        "startup_timeout_s": limits.start_s,
        "concurrency": int(limits.concurrency.default) if kind == "http" else 1,
        "max_queue": int(RANGES["max_queue"].default),
        "queue_timeout_s": (start_s if _number(start_s) else limits.start_s) + QUEUE_SLACK_S,
        "environment": "production",
        "health_check": None,
        "egress": "all",
        "acceleration": "auto",
        "pull": "missing",
        "registry": {},
        "on_client_cancel": "keep",
        "init": "auto",
        "wait_for_image": True,
    }
    filled.update(raw)
    if isinstance(filled["init"], bool):  # as TOML and JSON have them; the wire has words
        filled["init"] = str(filled["init"]).lower()
    filled["env"] = _texts(raw.get("env", {}))
    filled["labels"] = _texts(raw.get("labels", {}))
    filled["scaling"] = _scaling(raw.get("scaling", {}), limits, filled)
    filled["hooks"] = _hooks(raw.get("hooks", {}))
    filled["async_calls"] = _ranged("async_calls", raw.get("async_calls", {}))
    if "health_check" in raw:
        filled["health_check"] = _ranged("health_check", raw["health_check"])
    version = filled["version"]
    if isinstance(version, str) and version.isdecimal() and len(version) <= MAX_VERSION_DIGITS:
        filled["version"] = int(version)
    return filled


def limits_of(raw: Tree) -> ContractLimits:
    """Return the contract's column, or that of the assumed contract when it names none we know."""
    name = raw.get("contract")
    return LIMITS.get(name if isinstance(name, str) else "", LIMITS[ASSUMED_CONTRACT])


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _port(raw: Tree, limits: ContractLimits, kind: str) -> int:
    if limits.port is None or kind == "job":
        return 0
    env = raw.get("env")
    named = str(env.get("PORT", "")) if isinstance(env, dict) else ""
    if raw.get("contract") == "vercel" and named.isdecimal() and len(named) <= 5:
        return int(named)
    return int(limits.port.default)


def _texts(table: Any) -> Any:
    """Whole numbers in `env` and `labels` are meant as text: PORT = 8080."""
    if not isinstance(table, dict):
        return table
    return {
        key: str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for key, value in table.items()
    }


def _ranged(name: str, table: Any) -> Any:
    if not isinstance(table, dict):
        return table
    prefix = f"{name}."
    defaults = {
        path.removeprefix(prefix): _whole(path, figures.default)
        for path, figures in RANGES.items()
        if path.startswith(prefix)
    }
    return {**defaults, **table}


def _whole(path: str, value: float) -> float:
    return float(value) if path.endswith("_s") else int(value)


def _scaling(table: Any, limits: ContractLimits, spec: Tree) -> Any:
    filled = _ranged("scaling", table)
    if isinstance(filled, dict):
        idle_s = limits.idle_preview_s if spec["environment"] == "preview" else limits.idle_s
        filled["standby"] = table.get("standby")
        filled["idle_s"] = table.get("idle_s", idle_s)
        freeze_after_ms = -1 if spec["kind"] == "job" else limits.freeze_after_ms
        filled["freeze_after_ms"] = table.get("freeze_after_ms", freeze_after_ms)
    return filled


def _hooks(table: Any) -> Any:
    if not isinstance(table, dict):
        return table
    filled = dict(table)
    for name, default in HOOKS.items():
        hook = table.get(name)
        if isinstance(hook, dict):
            filled[name] = {"path": default.path, "timeout_s": default.timeout_s, **hook}
    return filled
