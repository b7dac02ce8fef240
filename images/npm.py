"""Takes a node_modules out of a lock file: by Debian's npm, unpacked, from the registry it asks.

The lock files name no registry; `make lock` writes them by `software.py --lock`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import debian
import debs
from ociarchive import File, Link

PACKAGES = ("nodejs", "npm")
MANIFESTS = ("package.json", "package-lock.json")
CI = ("ci", "--omit=dev", "--ignore-scripts", "--no-bin-links")
LOCK = ("install", "--package-lock-only", "--ignore-scripts", "--omit-lockfile-registry-resolved")


def modules(source: Path, root: debian.Tree) -> debian.Tree:
    """Return the node_modules of what `source` locks; `root` has PACKAGES and a shell."""
    found: debian.Tree = {}
    with _ran(source, root, CI) as app:
        for path in sorted(app.rglob("node_modules/**/*")):
            inside = str(path.relative_to(app))
            if path.is_symlink():
                found[inside] = Link(os.readlink(path))
            elif path.is_file():
                mode = 0o755 if os.access(path, os.X_OK) else 0o644
                found[inside] = File(path.read_bytes(), mode)
    return found


def lock(source: Path, root: debian.Tree) -> None:
    """Pin the dependencies of the package.json in `source` anew."""
    with _ran(source, root, LOCK) as app:
        (source / MANIFESTS[1]).write_bytes((app / MANIFESTS[1]).read_bytes())


@contextmanager
def _ran(source: Path, root: debian.Tree, arguments: tuple[str, ...]) -> Iterator[Path]:
    given = {
        f"app/{name}": File((source / name).read_bytes())
        for name in MANIFESTS
        if (source / name).exists()
    }
    quiet = ("--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error")
    with tempfile.TemporaryDirectory(prefix="kindling-images-") as place:
        command = ["/usr/bin/npm", *arguments, *quiet, "--cache=/tmp/npm"]
        debs.run_inside({**root, **given}, Path(place), command, "/app")
        yield Path(place, "app")
