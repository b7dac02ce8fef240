"""Takes trees out of locked Python wheels: fetched by pip, from the index this host's pip asks.

Only wheels, so that nothing is built, and only those whose hashes stand in the lock file, which
`make lock` writes.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import debian
from ociarchive import File

PLACE = Path(__file__).resolve().parent / ".cache"
INTERPRETER = "/usr/bin/python3"


def site(version: str) -> str:
    """Return where Debian's Python `3.11` finds what pip installs, relative to the root."""
    return f"usr/local/lib/python{version}/dist-packages/"


def tree(lock: Path, version: str) -> debian.Tree:
    """Return the locked packages as `pip install` lays them out, with byte code and commands."""
    found: debian.Tree = {}
    with tempfile.TemporaryDirectory(prefix="kindling-images-") as place:
        target = Path(place, "site")
        pip = [str(_pip(version)), "install", "-q", "--disable-pip-version-check"]
        pip += ["--no-compile", "--only-binary=:all:", "--require-hashes", f"--target={target}"]
        _run([*pip, f"--requirement={lock}"])
        for path in sorted(target.rglob("*")):
            # RECORD has the hashes of commands that start pip's Python, wherever that lies.
            if path.is_file() and path.name != "RECORD":
                inside = str(path.relative_to(target))
                data = path.read_bytes()
                if inside.startswith("bin/"):
                    found[f"usr/local/{inside}"] = _command(data)
                else:
                    mode = 0o755 if os.access(path, os.X_OK) else 0o644
                    found[site(version) + inside] = File(data, mode)
    return found | debian.compiled(found, site(version))


def _pip(version: str) -> Path:
    """Return a pip of our own: Debian's Python comes without."""
    place = PLACE / f"pip-{version}"
    if not (place / "bin" / "pip").exists():
        _run([INTERPRETER, "-m", "venv", str(place)])
    return place / "bin" / "pip"


def _command(data: bytes) -> File:
    """Return a console script that is started by the image's Python instead of pip's."""
    _, _, rest = data.partition(b"\n")
    return File(f"#!{INTERPRETER}\n".encode() + rest, 0o755)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise debian.Missing(
            f"{Path(command[0]).name}: {reason}; check python3-venv, the network and pip's settings"
        )
