"""How a registry is reached, as the operator's directory says: containerd's hosts.toml, read whole.

The same keys as containerd's own reader (`docs/hosts.md` there): `server`, `[host."url"]` tried in
the order of the file, `capabilities`, `ca`, `client`, `skip_verify`, `header`, `override_path`.
Pure: text in, values out, and back to text for containerd. `agent/containerd/endpoints.py` reads
and writes the files. What containerd would pass over silently is an error here.
"""

from __future__ import annotations

import json
import posixpath
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

CAPABILITIES = ("pull", "resolve", "push")
KEYS = frozenset(
    {"capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"}
)
MAX_HOSTS = 16


@dataclass(frozen=True, slots=True)
class HostEntry:
    """One place that has a registry's images. `host` "" stands for the registry itself.

    `ca` and `client` are paths; a client's key is "" when it lies in the certificate's file.
    """

    scheme: str = ""
    host: str = ""
    path: str = "/v2"
    capabilities: tuple[str, ...] = CAPABILITIES
    ca: tuple[str, ...] = ()
    client: tuple[tuple[str, str], ...] = ()
    skip_verify: bool = False
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def says_tls(self) -> bool:
        """Whether it makes sense with TLS only."""
        return bool(self.ca or self.client or self.skip_verify)


def parse_hosts(text: str, directory: str) -> tuple[HostEntry, ...]:
    """Return the entries of a hosts.toml in the order of trying; the last is the registry itself.

    Relative paths are below `directory`. Raises ValueError naming the mistake.
    """
    data = tomllib.loads(text)
    hosts = data.pop("host", {})
    server = data.pop("server", "")
    if not isinstance(hosts, dict) or not isinstance(server, str):
        raise _wrong("'server' must be a text and 'host' a table")
    if len(hosts) > MAX_HOSTS:
        raise _wrong(f"has {len(hosts)} hosts; at most {MAX_HOSTS}")
    entries = [_entry(url, table, directory) for url, table in hosts.items()]
    return (*entries, _entry(server, data, directory))


def _wrong(why: str) -> ValueError:
    return ValueError(why)


def _entry(url: str, table: object, directory: str) -> HostEntry:
    where = f"host {url!r}" if url else "the server"
    if not isinstance(table, dict):
        raise _wrong(f"{where} must be a table")
    unknown = sorted(table.keys() - KEYS)
    if unknown:
        raise _wrong(f"{where} has the unknown key {unknown[0]!r}")
    scheme, host, path = _address(url, override=bool(table.get("override_path", False)))
    named = _texts(table.get("capabilities", []), where) or CAPABILITIES
    capabilities = tuple(each.lower() for each in named)
    if set(capabilities) - set(CAPABILITIES):
        raise _wrong(f"{where}: capabilities are {', '.join(CAPABILITIES)}")
    return HostEntry(
        scheme=scheme,
        host=host,
        path=path,
        capabilities=capabilities,
        ca=tuple(posixpath.join(directory, each) for each in _texts(table.get("ca", []), where)),
        client=tuple(_pair(each, directory, where) for each in _listed(table.get("client", []))),
        skip_verify=bool(table.get("skip_verify", False)),
        headers=tuple(_headers(table.get("header", {}), where)),
    )


def _address(url: str, *, override: bool) -> tuple[str, str, str]:
    if not url:
        return "", "", "/v2"
    parts = urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise _wrong(f"{url!r} is no address of http or https")
    path = posixpath.normpath(parts.path) if parts.path else ""
    path = "" if path in (".", "/") else path
    if not override and not path.endswith("/v2"):
        path += "/v2"
    return parts.scheme, parts.netloc, path


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _texts(value: object, where: str) -> list[str]:
    found = [each for each in _listed(value) if isinstance(each, str)]
    if len(found) != len(_listed(value)):
        raise _wrong(f"{where}: {value!r} must be a text or a list of texts")
    return found


def _pair(value: object, directory: str, where: str) -> tuple[str, str]:
    paths = [posixpath.join(directory, each) for each in _texts(value, where)]
    if len(paths) not in (1, 2):
        raise _wrong(f"{where}: a client is a certificate, or a certificate and its key")
    return paths[0], paths[1] if len(paths) == 2 else ""


def _headers(value: object, where: str) -> list[tuple[str, str]]:
    if not isinstance(value, dict):
        raise _wrong(f"{where}: 'header' must be a table")
    return [(name, each) for name, texts in value.items() for each in _texts(texts, where)]


def hosts_toml(entries: Sequence[HostEntry]) -> str:
    """Return entries as containerd reads them; the last is the server."""
    *mirrors, server = entries
    lines = [f"server = {_quoted(_url(server))}", *_keys(server, "")]
    for mirror in mirrors:
        name = _quoted(_url(mirror))
        lines += [f"[host.{name}]", *_keys(mirror, f"host.{name}.")]
    return "\n".join(lines) + "\n"


def _url(entry: HostEntry) -> str:
    return f"{entry.scheme}://{entry.host}{entry.path}"


def _keys(entry: HostEntry, prefix: str) -> list[str]:
    lines = [f"capabilities = {_list(entry.capabilities)}", "override_path = true"]
    if entry.ca:
        lines.append(f"ca = {_list(entry.ca)}")
    if entry.client:
        pairs = ", ".join(_list(pair) if pair[1] else _quoted(pair[0]) for pair in entry.client)
        lines.append(f"client = [{pairs}]")
    if entry.skip_verify:
        lines.append("skip_verify = true")
    if entry.headers:
        names = dict.fromkeys(name for name, _ in entry.headers)
        lines.append(f"[{prefix}header]")
        for name in names:
            lines.append(f"{_quoted(name)} = {_list([v for n, v in entry.headers if n == name])}")
    return lines


def _list(texts: Sequence[str]) -> str:
    return "[" + ", ".join(map(_quoted, texts)) + "]"


def _quoted(text: str) -> str:
    # A JSON string is a TOML basic string for every text without control characters above ASCII.
    return json.dumps(text, ensure_ascii=False)
