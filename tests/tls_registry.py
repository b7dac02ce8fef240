"""Debian's docker-registry over TLS, under an address of this host that is not its loopback's.

Lazy engines speak plain HTTP with 127.0.0.1 and nothing but TLS with everybody else. The address is
one of the range for benchmarks (RFC 2544) on the loopback interface, so no byte leaves the host. A
second registry on plain HTTP has the same files, for pushing.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPSConnection
from pathlib import Path

from tests import registry
from tests.certificates import Certificate

Auth = Callable[[str, Certificate], str]
"""Gives the section on who may enter, for a registry at this address with this certificate."""

PORT = 5443
START_S = 20
CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}}}
http: {{addr: "{address}", tls: {{certificate: {ca}, key: {key}}}}}
{auth}
"""


@dataclass
class TlsRegistry:
    """A registry that may be stopped and started; `plain` is where images are pushed."""

    address: str
    plain: str
    directory: Path
    ca: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        with (self.directory / "tls.log").open("ab") as log:
            command = [str(registry.BINARY), "serve", str(self.directory / "tls.yml")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until = time.monotonic() + START_S
        trusted = ssl.create_default_context(cafile=str(self.ca))
        while time.monotonic() < until:
            with suppress(OSError):
                connection = HTTPSConnection(self.address, timeout=5, context=trusted)
                connection.request("GET", "/v2/")
                connection.getresponse().read()
                connection.close()
                return
            time.sleep(0.02)
        raise AssertionError(f"no registry over TLS: see {self.directory}/tls.log")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None


@contextmanager
def tls_registry(directory: Path, *, auth: str | Auth = "") -> Iterator[TlsRegistry]:
    """Run one keeping its data below `directory`; `auth` as `registry.registry` takes it."""
    host = f"198.18.{os.getpid() % 254 + 1}.{time.monotonic_ns() % 254 + 1}"
    ca, key = directory / "ca.pem", directory / "key.pem"
    _certificate(host, ca, key)
    subprocess.run(["ip", "address", "add", f"{host}/32", "dev", "lo"], check=True)
    try:
        with registry.registry(directory) as plain:
            made = TlsRegistry(f"{host}:{PORT}", plain, directory, ca)
            config = CONFIG.format(
                root=directory / "registry",
                address=made.address,
                ca=ca,
                key=key,
                auth=auth if isinstance(auth, str) else auth(host, Certificate(ca, key)),
            )
            (directory / "tls.yml").write_text(config)
            try:
                made.start()
                yield made
            finally:
                made.stop()
    finally:
        subprocess.run(["ip", "address", "del", f"{host}/32", "dev", "lo"], check=True)


def _certificate(host: str, ca: Path, key: Path) -> None:
    made = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=kindling-test"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    names = ["-addext", f"subjectAltName=IP:{host}", "-keyout", str(key), "-out", str(ca)]
    subprocess.run([*made, *curve, *names], check=True, capture_output=True)
    ca.chmod(0o644)
