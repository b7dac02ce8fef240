"""Takes a minimal Python root file system out of the host's own Debian packages.

The files of python3.X's minimal and stdlib packages as dpkg lists them, less what no function
needs, plus the shared libraries ldd finds for them, plus byte code compiled by that same Python
(without it every cold start would compile). Reads the host, changes nothing. `build.py` makes it a
layer.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from ociarchive import Directory, File, Link

PYTHON = Path("/usr/bin/python3")
LOADER = "/lib64/ld-linux-x86-64.so.2"
LEFT_OUT = (
    "/test/",
    "/tests/",
    "/idlelib/",
    "/tkinter/",
    "/turtledemo/",
    "/ensurepip/",
    "/lib2to3/",
    "/pydoc_data/",
    "/distutils/",
    "/__phello__/",
    "/config-3",
)
KEPT = ("/usr/bin/python3", "/usr/lib/python3", "/usr/lib/x86_64-linux-gnu/", "/etc/python3")

Tree = dict[str, File | Link | Directory]

# What a container expects beside Python.
SKELETON: Tree = {
    "bin": Link("usr/bin"),
    "lib": Link("usr/lib"),
    "lib64": Link("usr/lib64"),
    "sbin": Link("usr/bin"),
    "dev": Directory(),
    "proc": Directory(),
    "sys": Directory(),
    "run": Directory(),
    "root": Directory(0o700),
    "tmp": Directory(0o1777),
    "var/tmp": Directory(0o1777),
    "etc/passwd": File(
        b"root:x:0:0:root:/root:/bin/sh\n"
        b"app:x:1000:1000:app:/tmp:/bin/sh\n"
        b"nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
    ),
    "etc/group": File(b"root:x:0:\napp:x:1000:\nnogroup:x:65534:\n"),
    "etc/nsswitch.conf": File(b"passwd: files\ngroup: files\nhosts: files dns\n"),
}


class Missing(Exception):
    """Something the host lacks; the text says how to get it."""


def python_version() -> str:
    """Return the host Debian's Python as `3.11`; raises Missing when it has none."""
    if not PYTHON.exists():
        raise Missing("no /usr/bin/python3: run 'apt-get install python3'")
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return _run([str(PYTHON), "-I", "-c", code]).strip()


def packages(version: str) -> list[str]:
    """Return the Debian packages the layer is made of."""
    return [f"python{version}-minimal", f"libpython{version}-minimal", f"libpython{version}-stdlib"]


def fingerprint(names: list[str]) -> str:
    """Return what changes when any of these packages, or the C library, does."""
    query = ["dpkg-query", "-W", "-f", "${Package} ${Version}\n"]
    try:
        return _run([*query, *names, "libc6", "libssl3*", "zlib1g"])
    except subprocess.CalledProcessError as error:
        wanted = " ".join(names)
        raise Missing(f"not all installed: run 'apt-get install {wanted}'") from error


def python_tree(version: str) -> Tree:
    """Return the whole root file system."""
    tree = dict(SKELETON)
    binaries: list[str] = []
    for path in _listed(packages(version)):
        inside = _inside(path)
        if path.is_symlink():
            tree[inside] = Link(os.readlink(path))
        elif path.is_file():
            mode = 0o755 if os.access(path, os.X_OK) else 0o644
            tree[inside] = File(path.read_bytes(), mode)
            if path.suffix == ".so" or inside == f"usr/bin/python{version}":
                binaries.append(str(path))
    tree["usr/bin/python3"] = Link(f"python{version}")
    tree |= _libraries(binaries)
    tree |= compiled(tree, f"usr/lib/python{version}/")
    return tree


def _listed(names: list[str]) -> list[Path]:
    lines = _run(["dpkg", "-L", *names]).splitlines()
    found = {line for line in lines if line.startswith(KEPT)}
    return [Path(line) for line in sorted(found) if not any(part in line for part in LEFT_OUT)]


def _inside(path: Path | str) -> str:
    """Return a host path as it lies in the image, where /lib and /bin are links into /usr."""
    text = str(path)
    for short in ("/lib64/", "/lib/", "/bin/"):
        if text.startswith(short):
            return f"usr{text}"
    return text.lstrip("/")


def _libraries(binaries: list[str]) -> Tree:
    """Return the shared libraries these need, under the names they are asked for by."""
    wanted = {LOADER}
    for line in _run(["ldd", *binaries]).splitlines():
        _, arrow, place = line.partition(" => ")
        if arrow and place.startswith("/"):
            wanted.add(place.split()[0])
        elif "not found" in line:
            raise Missing(f"a library of Python is missing on this host: {line.strip()}")
    return {_inside(path): File(Path(path).read_bytes(), 0o755) for path in sorted(wanted)}


def compiled(tree: Tree, root: str) -> Tree:
    """Return byte code for every module below `root`, checked by nobody at run time (PEP 552)."""
    found: Tree = {}
    with tempfile.TemporaryDirectory(prefix="kindling-images-") as place:
        for path, what in tree.items():
            if isinstance(what, File) and path.startswith(root) and path.endswith(".py"):
                target = Path(place, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(what.data)
        command = [str(PYTHON), "-I", "-m", "compileall", "-q", "-j1", "-s", place, "-p", "/"]
        command += ["--invalidation-mode", "unchecked-hash", str(Path(place, root))]
        _run(command, PYTHONHASHSEED="0")
        for compiled in sorted(Path(place).rglob("*.pyc")):
            found[str(compiled.relative_to(place))] = File(compiled.read_bytes())
    return found


def _run(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C", **environment},
    )
    return done.stdout
