"""The rules of a spec whose types are right: figures, relations, and what each contract allows.

Every rule looks at the whole spec and yields what is wrong with the way out; none stops at the
first. Figures stand in `model/limits.py`. What only the node knows (volumes of its config, free
memory, the image) is judged by `agent/deployments`.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from agent.errors import Problem
from agent.model import limits as figures
from agent.model.image_ref import parse_image_ref
from agent.model.limits import LIMITS, RANGES, RESERVED_ENV_PREFIXES, ContractLimits, Range
from agent.model.registry_rules import registry_problems
from agent.model.spec import FunctionSpec

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}", re.ASCII)
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}", re.ASCII)
VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?", re.ASCII)
HTTP_PATH = re.compile(r"/[!-~]{0,1023}", re.ASCII)
LABEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,127}", re.ASCII)
MAX_LABEL_CHARS = 1024
KERNEL_PLACES = ("/proc", "/sys", "/dev")

Found = Iterator[Problem]


def broken_rules(spec: FunctionSpec, told: set[str]) -> list[Problem]:
    """Return everything the rules find; fields in `told` are already known to be wrong.

    While the contract is wrong its own rules are silent, likewise those of the kind.
    """
    problems = [problem for rule in _ALWAYS for problem in rule(spec)]
    if "contract" not in told:
        limits = LIMITS[spec.contract]
        problems += [p for rule in _PER_CONTRACT for p in rule(spec, limits)]
        if "kind" not in told:
            problems += [p for rule in _PER_KIND for p in rule(spec, limits)]
    return problems


def _shown(number: float) -> str:
    return f"{number:g}" if abs(number) < 1e6 else f"{number:.0f}"


def _outside(field: str, value: float, allowed: Range, whose: str = "") -> Found:
    if not allowed.holds(value):
        bounds = f"{_shown(allowed.least)} to {_shown(allowed.most)}"
        yield Problem(field, f"is {_shown(value)}; must be {bounds}{whose}")


# -- under every contract


def _name(spec: FunctionSpec) -> Found:
    if not NAME.fullmatch(spec.name):
        yield Problem(
            "name",
            f"{spec.name[:80]!r} must be 1 to 64 of A-Z a-z 0-9 _ - and start with a letter or _",
        )


def _image(spec: FunctionSpec) -> Found:
    try:
        parse_image_ref(spec.image)
    except ValueError as error:
        yield Problem("image", str(error))


def _ranges(spec: FunctionSpec) -> Found:
    for path, allowed in RANGES.items():
        value: object = spec
        for part in path.split("."):
            value = getattr(value, part) if value is not None else None
        if isinstance(value, int | float):
            yield from _outside(path, value, allowed)


def _strings(spec: FunctionSpec) -> Found:
    most = figures.MAX_STRING_BYTES
    for field in ("command", "args"):
        for n, argument in enumerate(getattr(spec, field) or ()):
            size = len(argument.encode()) + 1
            if size > most:
                yield Problem(f"{field}[{n}]", f"takes {size} bytes; Linux takes at most {most}")
    if spec.command is not None and spec.command[:1] in ((), ("",)):
        yield Problem("command", "names no program; leave the field out to use the image's own")
    if spec.user and not USER.fullmatch(spec.user):
        yield Problem("user", "must be a user's name or number, with :group if needed")


def _env(spec: FunctionSpec) -> Found:
    for name, value in spec.env.items():
        yield from _variable(f"env.{name}", name)
        size = len(f"{name}={value}".encode()) + 1
        if size > figures.MAX_STRING_BYTES:
            yield Problem(
                f"env.{name}", f"takes {size} bytes; Linux takes at most {figures.MAX_STRING_BYTES}"
            )


def _variable(field: str, name: str) -> Found:
    if not ENV_NAME.fullmatch(name):
        yield Problem(
            field, "a variable's name holds letters, digits and _ and starts with no digit"
        )
    elif name.startswith(RESERVED_ENV_PREFIXES):
        taken = ", ".join(f"{prefix}*" for prefix in RESERVED_ENV_PREFIXES)
        yield Problem(field, f"is a reserved name ({taken} belong to the platform); rename it")


def _secrets(spec: FunctionSpec) -> Found:
    if len(spec.secrets) > figures.MAX_SECRETS:
        yield Problem("secrets", f"are more than {figures.MAX_SECRETS}")
    names = set(spec.env)
    for n, secret in enumerate(spec.secrets):
        field = f"secrets[{n}]"
        yield from _variable(f"{field}.name", secret.name)
        if secret.name in names:
            yield Problem(f"{field}.name", f"{secret.name} is already a variable of this function")
        names.add(secret.name)
        if (secret.value is None) == (secret.file is None):
            yield Problem(field, "must have exactly one of value and file")
        if secret.file is not None and not _absolute(secret.file):
            yield Problem(f"{field}.file", "must be an absolute path without . or ..")


def _mounts(spec: FunctionSpec) -> Found:
    if len(spec.mounts) > figures.MAX_MOUNTS:
        yield Problem("mounts", f"are more than {figures.MAX_MOUNTS}")
    targets: set[str] = set()
    for n, mount in enumerate(spec.mounts):
        field = f"mounts[{n}]"
        if not VOLUME.fullmatch(mount.volume):
            yield Problem(
                f"{field}.volume",
                f"{mount.volume[:80]!r} is not the name of a volume; only directories named under "
                "[volumes] in the node's config can be mounted",
            )
        if not _absolute(mount.target) or mount.target == "/":
            yield Problem(f"{field}.target", "must be an absolute path below /, without . or ..")
        elif mount.target.startswith(tuple(f"{p}/" for p in KERNEL_PLACES)) or (
            mount.target in KERNEL_PLACES
        ):
            yield Problem(f"{field}.target", "must not lie in /proc, /sys or /dev")
        elif mount.target in targets:
            yield Problem(f"{field}.target", f"{mount.target} is mounted twice")
        targets.add(mount.target)


def _absolute(path: str) -> bool:
    return path.startswith("/") and posixpath.normpath(path) == path and not path.startswith("//")


def _scaling(spec: FunctionSpec) -> Found:
    scaling = spec.scaling
    for field in ("min", "standby"):
        value = getattr(scaling, field)
        if value is not None and value > scaling.max:
            yield Problem(
                f"scaling.{field}", f"is {value}, more than scaling.max ({scaling.max}); raise max"
            )


def _health_check(spec: FunctionSpec) -> Found:
    if spec.health_check and not HTTP_PATH.fullmatch(spec.health_check.path):
        yield Problem("health_check.path", "must be a path such as /health, in printable ASCII")


def _egress(spec: FunctionSpec) -> Found:
    if isinstance(spec.egress, str):
        return
    if len(spec.egress) > figures.MAX_EGRESS_RULES:
        yield Problem("egress", f"has more than {figures.MAX_EGRESS_RULES} networks")
    if not spec.egress:
        yield Problem("egress", 'is an empty list; write "none" to close all')
    for n, network in enumerate(spec.egress):
        try:
            ipaddress.IPv4Network(network)
        except ValueError as error:
            yield Problem(
                f"egress[{n}]", f"{network[:80]!r} is no IPv4 network such as 10.0.0.0/8: {error}"
            )


def _async_calls(spec: FunctionSpec) -> Found:
    for field in ("on_success", "on_failure"):
        url = getattr(spec.async_calls, field)
        if url and not _is_http_url(url):
            yield Problem(f"async_calls.{field}", "must be an http:// or https:// URL")


def _is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _registry(spec: FunctionSpec) -> Found:
    yield from registry_problems(spec.registry)


def _labels(spec: FunctionSpec) -> Found:
    if len(spec.labels) > figures.MAX_LABELS:
        yield Problem("labels", f"are more than {figures.MAX_LABELS}")
    for name, value in spec.labels.items():
        if not LABEL_NAME.fullmatch(name):
            yield Problem(f"labels.{name[:80]}", "a label's name holds A-Z a-z 0-9 _ . / -, to 128")
        if len(value) > MAX_LABEL_CHARS:
            yield Problem(f"labels.{name[:80]}", f"is longer than {MAX_LABEL_CHARS} characters")


# -- by contract


def _contract_ranges(spec: FunctionSpec, limits: ContractLimits) -> Found:
    whose = f" for contract {spec.contract}"
    yield from _outside("timeout_s", spec.timeout_s, limits.call_s, whose)
    yield from _outside("pids", spec.pids, limits.pids, whose)
    start = Range(0.1, limits.start_s, limits.start_s)
    yield from _outside("startup_timeout_s", spec.startup_timeout_s, start, whose)
    if spec.disk_mb not in limits.disk_mb:
        choices = " or ".join(str(size) for size in limits.disk_mb)
        yield Problem("disk_mb", f"is {spec.disk_mb}; must be {choices}{whose}")


def _env_size(spec: FunctionSpec, limits: ContractLimits) -> Found:
    size = sum(len(f"{name}{value}".encode()) for name, value in spec.env.items())
    if limits.env_bytes and size > limits.env_bytes:
        yield Problem(
            "env",
            f"names and values together take {size} bytes; contract {spec.contract} allows "
            f"{limits.env_bytes}",
        )


def _hooks(spec: FunctionSpec, limits: ContractLimits) -> Found:
    for name in figures.HOOKS:
        hook = getattr(spec.hooks, name)
        most: float = getattr(limits, f"{name}_s")
        field = f"hooks.{name}"
        if hook is None:
            continue
        if not most:
            yield Problem(field, f"contract {spec.contract} has no such hook; remove it")
            continue
        yield from _outside(f"{field}.timeout_s", hook.timeout_s, Range(0.1, most, most))
        if not HTTP_PATH.fullmatch(hook.path):
            yield Problem(f"{field}.path", "must be a path such as /hook, in printable ASCII")


# -- by kind


def _kind(spec: FunctionSpec, limits: ContractLimits) -> Found:
    if spec.kind not in limits.kinds:
        choices = " or ".join(limits.kinds)
        yield Problem("kind", f"is {spec.kind}; contract {spec.contract} knows {choices}")


def _concurrency(spec: FunctionSpec, limits: ContractLimits) -> Found:
    if spec.kind == "http":
        whose = f" for contract {spec.contract}"
        yield from _outside("concurrency", spec.concurrency, limits.concurrency, whose)
    elif spec.concurrency != 1:
        yield Problem(
            "concurrency",
            f"is {spec.concurrency}; a function of kind {spec.kind} serves one call at a time: "
            "remove it, or choose kind http",
        )


def _port(spec: FunctionSpec, limits: ContractLimits) -> Found:
    if spec.kind == "job" or limits.port is None:
        if spec.port:
            yield Problem("port", "a job listens on no port; remove it")
        return
    if limits.port.least == limits.port.most and spec.port != limits.port.least:
        fixed = _shown(limits.port.least)
        yield Problem("port", f"is fixed at {fixed} by contract {spec.contract}; remove it")
    else:
        yield from _outside("port", spec.port, limits.port)
    named = spec.env.get("PORT")
    if spec.contract == "vercel" and named is not None and named != str(spec.port):
        yield Problem("env.PORT", f"is {named[:20]!r}, but port is {spec.port}; set only one")


def _job(spec: FunctionSpec, _: ContractLimits) -> Found:
    if spec.kind != "job":
        return
    for field in ("min", "standby"):
        if getattr(spec.scaling, field):
            yield Problem(f"scaling.{field}", "must be 0: a job runs only when it is called")
    if spec.health_check is not None:
        yield Problem("health_check", "a job serves no HTTP; remove it")
    for name in figures.HOOKS:
        if getattr(spec.hooks, name) is not None:
            yield Problem(f"hooks.{name}", "a job serves no HTTP; remove it")


_ALWAYS: tuple[Callable[[FunctionSpec], Found], ...] = (
    _name,
    _image,
    _ranges,
    _strings,
    _env,
    _secrets,
    _mounts,
    _scaling,
    _health_check,
    _egress,
    _async_calls,
    _registry,
    _labels,
)
_PER_CONTRACT: tuple[Callable[[FunctionSpec, ContractLimits], Found], ...] = (
    _contract_ranges,
    _env_size,
    _hooks,
)
_PER_KIND: tuple[Callable[[FunctionSpec, ContractLimits], Found], ...] = (
    _kind,
    _concurrency,
    _port,
    _job,
)
