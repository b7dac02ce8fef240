"""Debian's docker-registry on loopback for tests, and pushing images into it over plain HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tests.oci import OciImage

BINARY = Path("/usr/bin/docker-registry")
START_S = 20

CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}}}
http: {{addr: "{address}"}}
"""


@contextlib.contextmanager
def registry(directory: Path) -> Iterator[str]:
    """Run a registry keeping its data below `directory`; gives host:port."""
    address = f"127.0.0.1:{_free_port()}"
    config = directory / "registry.yml"
    config.write_text(CONFIG.format(root=directory / "registry", address=address))
    log = (directory / "registry.log").open("wb")
    process = subprocess.Popen([BINARY, "serve", config], stdout=log, stderr=log)
    try:
        _wait_for(address, process)
        yield address
    finally:
        process.terminate()
        process.wait(10)
        log.close()


def push(address: str, repository: str, tag: str, image: OciImage, *, skip: str = "") -> None:
    """Put an image under repository:tag; the blob whose digest is `skip` is removed again."""
    manifests = [
        key for key, data in image.blobs.items() if key != image.digest and _is_manifest(data)
    ]
    for digest, data in image.blobs.items():
        if digest not in manifests and digest != image.digest:
            _put_blob(address, repository, digest, data)
    for digest in manifests:
        data = image.blobs[digest]
        kind = str(json.loads(data).get("mediaType", ""))
        _request(address, "PUT", f"/v2/{repository}/manifests/{digest}", data, kind)
    kind = str(image.manifest["mediaType"])
    data = image.blobs[image.digest]
    _request(address, "PUT", f"/v2/{repository}/manifests/{tag}", data, kind)
    if skip:
        _request(address, "DELETE", f"/v2/{repository}/blobs/{skip}")


def _is_manifest(data: bytes) -> bool:
    if not data.startswith(b"{"):
        return False
    return "mediaType" in json.loads(data)


def _put_blob(address: str, repository: str, digest: str, data: bytes) -> None:
    location = _request(address, "POST", f"/v2/{repository}/blobs/uploads/")
    parts = urlsplit(location)
    target = f"{parts.path}?{parts.query}&digest={digest}"
    _request(address, "PUT", target, data, "application/octet-stream")


def _request(address: str, method: str, path: str, body: bytes = b"", kind: str = "") -> str:
    """Make one request that must succeed; returns its Location."""
    connection = http.client.HTTPConnection(address, timeout=30)
    headers = {"Content-Type": kind} if kind else {}
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    text = reply.read()
    connection.close()
    if reply.status >= 300:
        raise AssertionError(f"{method} {path}: {reply.status} {text[:500]!r}")
    return reply.headers.get("Location", "")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError):
            _request(address, "GET", "/v2/")
            return
        time.sleep(0.05)
    raise AssertionError("docker-registry does not answer: see registry.log beside its data")
