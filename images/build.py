#!/usr/bin/env python3
"""Builds all sample images from the host's own Debian packages: no Docker, no registry, no network.

`python3 images/build.py [--out DIR] [NAME …]` writes one OCI archive per image and prints its name
and path. An archive is built again only when its content hash changes: sources in this directory,
the packages its layers are taken from, the compiler. Stdlib only; needs python3 and gcc of Debian.
"""

from __future__ import annotations

import argparse
import filecmp
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import debian
from ociarchive import Directory, File, Layer, archive, layer, write_whole

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache"
OUT = CACHE / "archives"
FORMAT = "1"
"""Part of every key: raised when archives are to be made anew though their sources are the same."""

GCC = ["gcc", "-std=c11", "-O2", "-static", "-s", "-Wall", "-Wextra", "-Werror"]
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PYTHON_START = ["/usr/bin/python3", "-S", "-u"]


@dataclass(frozen=True)
class Image:
    """One sample image: how to key it, and how to make its layers and config."""

    name: str
    sources: tuple[str, ...]
    base: Callable[[], str]
    layers: Callable[[], list[Layer]]
    config: dict[str, Any]

    @property
    def reference(self) -> str:
        """The name it is imported by."""
        return f"kindling.local/{self.name}:1"

    def key(self) -> str:
        """Return the hash of everything that goes into the archive."""
        shared = ("build.py", "debian.py", "ociarchive.py")
        parts = [FORMAT, self.reference, self.base()]
        parts += [(HERE / name).read_text() for name in (*shared, *self.sources)]
        parts.append(json.dumps(self.config, sort_keys=True))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


# -- layers


def python_base() -> str:
    """Return what identifies the host's Python packages."""
    return debian.fingerprint(debian.packages(debian.python_version()))


def python_layer() -> Layer:
    """Return the layer with Python, from the cache when the packages are the same."""
    version = debian.python_version()
    parts = python_base() + (HERE / "debian.py").read_text()
    return kept_layer("python", parts, lambda: layer(debian.python_tree(version)))


def kept_layer(name: str, parts: str, make: Callable[[], Layer]) -> Layer:
    """Return a layer from the cache, or make it when `parts`, what goes into it, is new there."""
    key = hashlib.sha256((FORMAT + parts).encode()).hexdigest()[:16]
    kept, diff = CACHE / f"{name}-{key}.tar.gz", CACHE / f"{name}-{key}.diff"
    if diff.exists() and kept.exists():
        return Layer(kept.read_bytes(), diff.read_text())
    made = make()
    for old in CACHE.glob(f"{name}-????????????????.*"):
        if old.suffix in (".gz", ".diff"):
            old.unlink(missing_ok=True)
    write_whole(kept, made.blob)
    write_whole(diff, made.diff_id.encode())
    return made


def python_image(name: str, *, port: bool) -> Image:
    """Return an image that runs `<name>/main.py` beside our small HTTP server."""
    own = sorted(f"{name}/{path.name}" for path in (HERE / name).glob("*.py"))
    sources = [*own, "python/httpd.py"]

    def layers() -> list[Layer]:
        tree = {
            f"app/{Path(source).name}": File((HERE / source).read_bytes()) for source in sources
        }
        return [python_layer(), layer(tree)]

    config: dict[str, Any] = {
        "Env": [PATH, "LANG=C.UTF-8"],
        "Entrypoint": [*PYTHON_START, "/app/main.py"],
        "WorkingDir": "/app",
    }
    if port:
        config["ExposedPorts"] = {"9000/tcp": {}}
    return Image(name, tuple(sources), python_base, layers, config)


def compiler() -> str:
    """Return what identifies the compiler; raises Missing when there is none."""
    try:
        found = subprocess.run(["gcc", "--version"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise debian.Missing("no gcc: run 'apt-get install gcc libc6-dev'") from error
    return found.stdout.splitlines()[0] + " ".join(GCC)


def static_layers() -> list[Layer]:
    """Return one layer with the static server and nothing else."""
    with tempfile.TemporaryDirectory(prefix="kindling-images-") as place:
        out = Path(place, "server")
        command = [*GCC, "-o", str(out), str(HERE / "static/server.c")]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            reason = made.stderr.strip().splitlines()[-1:]
            raise debian.Missing(
                f"gcc failed ({''.join(reason)}): run 'apt-get install gcc libc6-dev'"
            )
        data = out.read_bytes()
    names = ("dev", "proc", "sys", "etc")
    tree: debian.Tree = {name: Directory() for name in names}
    tree |= {"tmp": Directory(0o1777), "server": File(data, 0o755)}
    tree |= {"etc/passwd": debian.SKELETON["etc/passwd"], "etc/group": debian.SKELETON["etc/group"]}
    return [layer(tree)]


STATIC = Image(
    "static",
    ("static/server.c",),
    compiler,
    static_layers,
    {"Env": [PATH], "Entrypoint": ["/server"], "ExposedPorts": {"9000/tcp": {}}},
)
IMAGES = (
    STATIC,
    python_image("hello-event", port=True),
    python_image("hello-http", port=True),
    python_image("hello-job", port=False),
    python_image("probe", port=True),
)


# -- the command


def build(image: Image, out: Path) -> tuple[Path, bool]:
    """Write one archive below `out`; returns its path and whether it had to be made."""
    kept = CACHE / f"{image.name}-{image.key()}.tar"
    made = not kept.exists()
    if made:
        write_whole(kept, archive(image.reference, image.layers(), image.config))
        for old in CACHE.glob(f"{image.name}-????????????????.tar"):
            if old != kept:
                old.unlink(missing_ok=True)
    target = out / f"{image.name}.tar"
    if not target.exists() or not (
        target.samefile(kept) or filecmp.cmp(kept, target, shallow=False)
    ):
        show(kept, target)
    return target, made


def show(kept: Path, target: Path) -> None:
    """Put an archive of the cache where it was asked for: by one more name where that can be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        part.hardlink_to(kept)
    except OSError:
        shutil.copyfile(kept, part)
    part.replace(target)


def main(images: Sequence[Image] = IMAGES, what: str = "the sample images") -> int:
    """Build what was asked for of `images`; returns the exit status."""
    names = [image.name for image in images]
    parser = argparse.ArgumentParser(description=f"Build {what} as OCI archives.")
    parser.add_argument("--out", type=Path, default=OUT, help=f"where to put them (default {OUT})")
    parser.add_argument("--json", action="store_true", help="print {name: path} as JSON")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    asked = parser.parse_args()
    unknown = set(asked.names) - set(names)
    if unknown:
        parser.error(f"no image {', '.join(sorted(unknown))}: there are {', '.join(names)}")
    paths: dict[str, str] = {}
    for image in images:
        if asked.names and image.name not in asked.names:
            continue
        began = time.monotonic()
        try:
            path, made = build(image, asked.out)
        except debian.Missing as missing:
            print(f"images: cannot build {image.name}: {missing}", file=sys.stderr)
            return 1
        paths[image.reference] = str(path)
        if not asked.json:
            how = f"built in {time.monotonic() - began:.1f} s" if made else "unchanged"
            print(f"{image.reference:32} {path}  {path.stat().st_size / 1e6:.1f} MB, {how}")
    if asked.json:
        print(json.dumps(paths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
