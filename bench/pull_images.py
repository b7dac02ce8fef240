"""Images of about 30 MB to 1 GB, as real ones are: a language, its packages, and the rest.

Sizes are those that go over the link, as registries tell them. Each is the sample `hello-http` with
further layers. From 100 MB on a start imports numpy, the 1 GB one looks at the head of a model as
well. What is never read compresses as program files do, to a bit less than half.
"""

from __future__ import annotations

import gzip
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import registry
from tests.oci import Layer, OciImage, image
from tests.strangers import Base, Entry, layer_of

MB = 1 << 20
NUMPY = "numpy==1.26.4"
FILE_BYTES = 4 * MB
NOISE = 0.4
FILLERS = 3
WITH_NUMPY_MB, WITH_MODEL_MB = 100, 1000
_LIBRARIES = ("libgcc_s.so.1", "libstdc++.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1")
HOSTS_LIBRARIES = tuple(Path("/usr/lib/x86_64-linux-gnu", name) for name in _LIBRARIES)
SERVER = b"""\
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
if os.path.isdir("/opt/numpy"):
    import sys
    sys.path.insert(0, "/opt/numpy")
    import numpy
    assert numpy.arange(10).sum() == 45
if os.path.exists("/opt/model/0"):
    open("/opt/model/0", "rb").read(4096)
class Hello(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *args): pass
port = int(os.environ.get("FC_CUSTOM_LISTEN_PORT") or os.environ.get("PORT") or 9000)
HTTPServer(("0.0.0.0", port), Hello).serve_forever()
"""


@dataclass(frozen=True)
class Pulled:
    """An image to pull: its repository, and bytes as unpacked and as fetched."""

    name: str
    unpacked_bytes: int
    compressed_bytes: int


def push_all(address: str, base_archive: Path, sizes: Sequence[str]) -> list[Pulled]:
    """Make the images named by `sizes` ("30", "100", "250", "1000": MB) and push them."""
    base = Base.read(base_archive)
    pushed = []
    for size in sizes:
        made, unpacked = _image(base, int(size))
        registry.push(address, f"size{size}", "1", made)
        compressed = sum(len(blob) for blob in made.blobs.values())
        pushed.append(Pulled(f"size{size}", unpacked, compressed))
    return pushed


def _image(base: Base, megabytes: int) -> tuple[OciImage, int]:
    layers = [Layer(_plain(data)) for _, data in base.layers]
    layers.append(Layer(layer_of([Entry("opt/server.py", SERVER)])))
    if megabytes >= WITH_NUMPY_MB:
        layers.append(_numpy())
    here = sum(len(gzip.compress(layer.tar, 1)) for layer in layers)
    left = round((megabytes * MB - here) / NOISE)
    folder = "opt/model" if megabytes >= WITH_MODEL_MB else "opt/more"
    layers += [_filler(number, left // FILLERS, folder) for number in range(FILLERS)]
    config = base.config.get("config", {})
    run = {**config, "Entrypoint": ["python3", "-u", "/opt/server.py"], "Cmd": []}
    return image(layers, run), sum(len(layer.tar) for layer in layers)


def _plain(data: bytes) -> bytes:
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def _numpy() -> Layer:
    with tempfile.TemporaryDirectory() as place:
        command = (sys.executable, "-m", "pip", "install", "-q", "--target", place, NUMPY)
        subprocess.run([*command, "--no-deps", "--only-binary", ":all:"], check=True)
        found = [
            Entry(f"opt/numpy/{path.relative_to(place)}", path.read_bytes())
            for path in sorted(Path(place).rglob("*"))
            if path.is_file()
        ]
    # What numpy needs of the C and C++ libraries beyond the sample's Python.
    found += [Entry(str(path).lstrip("/"), path.read_bytes()) for path in HOSTS_LIBRARIES]
    return Layer(layer_of(found))


def _filler(number: int, size: int, folder: str) -> Layer:
    """Return a layer of files of which NOISE is noise and the rest repeats."""
    source = random.Random(number)  # the same at every run
    entries = []
    for count in range(max(1, size // FILE_BYTES)):
        noise = source.randbytes(round(FILE_BYTES * NOISE))
        text = (b"%d kindling " % count) * 16
        data = (noise + text * (FILE_BYTES // len(text)))[:FILE_BYTES]
        entries.append(Entry(f"{folder}/{number * 1000 + count}", data, mode=0o644))
    return Layer(layer_of(entries))
