"""The resolv.conf that functions see: the detached network's resolver, the host's search list.

The resolver forwards to the host's own (slirp4netns, built-in DNS). One file, of which
every container gets a copy; written in place of an older one in one step.
"""

from __future__ import annotations

import os
from pathlib import Path

HOST_FILE = Path("/etc/resolv.conf")
# What of the host's file also holds for another resolver (resolv.conf(5)).
_KEPT = frozenset({"search", "domain", "options", "sortlist"})


def text(host: str, resolver: str) -> str:
    """Return the functions' resolv.conf, given the host's."""
    lines = [f"nameserver {resolver}"]
    for line in host.splitlines():
        words = line.split()
        if words and words[0] in _KEPT:
            lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


def write(target: Path, resolver: str, host: Path = HOST_FILE) -> None:
    """Write the file at `target`, mode 0644; a missing host file counts as empty."""
    try:
        known = host.read_text(errors="replace")
    except OSError:
        known = ""
    fresh = target.with_name(target.name + ".new")
    fresh.write_text(text(known, resolver))
    fresh.chmod(0o644)
    os.replace(fresh, target)
