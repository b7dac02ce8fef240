"""Debian's docker-registry on loopback for tests, and pushing images into it.

Plain HTTP for anybody, or over TLS, with a password file, or behind a token service.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.certificates import Certificate
from tests.oci import OciImage

BINARY = Path("/usr/bin/docker-registry")
START_S = 20

CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}}}
http: {{addr: "{address}"{tls}}}
{auth}
"""
TLS = ', tls: {{certificate: "{pem}", key: "{key}"}}'
USER, PASSWORD, NEXT_PASSWORD = "me", "hush-7f3a9c51", "fresh-2b81d6e04c"
# What htpasswd -B makes of them.
HTPASSWD = {
    PASSWORD: "me:$2y$05$abcdefghijklmnopqrstuuS8rcnasCrkzgHPOGpxLBYmz5QjjhzHe\n",
    NEXT_PASSWORD: "me:$2y$05$abcdefghijklmnopqrstuuvSGMP5pVkz3SOyY5E7stY3Tnn4BOWuC\n",
}
AUTH_HTPASSWD = 'auth: {{htpasswd: {{realm: here, path: "{path}"}}}}'


@dataclass(frozen=True)
class Caller:
    """How a test speaks to a registry: whom it believes, and its Authorization header."""

    ca: str = ""
    authorization: str = ""

    def connection(self, address: str) -> http.client.HTTPConnection:
        if not self.ca:
            return http.client.HTTPConnection(address, timeout=30)
        context = ssl.create_default_context(cadata=self.ca)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a server's own certificate, too
        return http.client.HTTPSConnection(address, timeout=30, context=context)


ANYBODY = Caller()


@contextlib.contextmanager
def registry(
    directory: Path, *, tls: Certificate | None = None, auth: str = "", port: int = 0
) -> Iterator[str]:
    """Run a registry keeping its data below `directory`; gives host:port.

    `auth` is a section of its configuration: AUTH_HTPASSWD, or a token service's.
    """
    address = f"127.0.0.1:{port or free_port()}"
    config = directory / "registry.yml"
    shown = TLS.format(pem=tls.pem, key=tls.key) if tls is not None else ""
    root = directory / "registry"
    config.write_text(CONFIG.format(root=root, address=address, tls=shown, auth=auth))
    log = (directory / "registry.log").open("wb")
    process = subprocess.Popen([BINARY, "serve", config], stdout=log, stderr=log)
    try:
        _wait_for(address, process, Caller(tls.text if tls is not None else ""))
        yield address
    finally:
        process.terminate()
        process.wait(10)
        log.close()


def with_passwords(directory: Path) -> str:
    """Return the section for a registry that wants USER and PASSWORD, written below `directory`."""
    change_password(directory, PASSWORD)
    return AUTH_HTPASSWD.format(path=directory / "htpasswd")


def change_password(directory: Path, password: str) -> None:
    """Have a registry `with_passwords` take this one from now on, and no other."""
    path = directory / "htpasswd"
    fresh = path.with_suffix(".new")
    fresh.write_text(HTPASSWD[password])
    fresh.replace(path)


def push(
    address: str,
    repository: str,
    tag: str,
    image: OciImage,
    *,
    skip: str = "",
    by: Caller = ANYBODY,
) -> None:
    """Put an image under repository:tag; the blob whose digest is `skip` is removed again."""
    manifests = [
        key for key, data in image.blobs.items() if key != image.digest and _is_manifest(data)
    ]
    for digest, data in image.blobs.items():
        if digest not in manifests and digest != image.digest:
            _put_blob(address, repository, digest, data, by)
    for digest in manifests:
        data = image.blobs[digest]
        kind = str(json.loads(data).get("mediaType", ""))
        _request(address, "PUT", f"/v2/{repository}/manifests/{digest}", data, kind, by=by)
    kind = str(image.manifest["mediaType"])
    data = image.blobs[image.digest]
    _request(address, "PUT", f"/v2/{repository}/manifests/{tag}", data, kind, by=by)
    if skip:
        _request(address, "DELETE", f"/v2/{repository}/blobs/{skip}", by=by)


def _is_manifest(data: bytes) -> bool:
    if not data.startswith(b"{"):
        return False
    return "mediaType" in json.loads(data)


def _put_blob(address: str, repository: str, digest: str, data: bytes, by: Caller) -> None:
    location = _request(address, "POST", f"/v2/{repository}/blobs/uploads/", by=by)
    parts = urlsplit(location)
    target = f"{parts.path}?{parts.query}&digest={digest}"
    _request(address, "PUT", target, data, "application/octet-stream", by=by)


def _request(
    address: str,
    method: str,
    path: str,
    body: bytes = b"",
    kind: str = "",
    *,
    by: Caller = ANYBODY,
) -> str:
    """Make one request that must succeed; returns its Location."""
    connection = by.connection(address)
    headers = {"Content-Type": kind} if kind else {}
    if by.authorization:
        headers["Authorization"] = by.authorization
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    text = reply.read()
    connection.close()
    if reply.status >= 300:
        raise AssertionError(f"{method} {path}: {reply.status} {text[:500]!r}")
    return reply.headers.get("Location", "")


def free_port() -> int:
    """Return a port of loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(address: str, process: subprocess.Popen[bytes], caller: Caller) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError):
            connection = caller.connection(address)
            connection.request("GET", "/v2/")
            # 401 is an answer, too.
            connection.getresponse().read()
            connection.close()
            return
        time.sleep(0.05)
    raise AssertionError("docker-registry does not answer: see registry.log beside its data")
