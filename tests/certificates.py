"""Certificates for tests: an authority and what it signs, made by openssl on the spot."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

OPENSSL = Path("/usr/bin/openssl")
NAMES = "DNS:localhost,IP:127.0.0.1"


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, as files."""

    pem: Path
    key: Path

    @property
    def text(self) -> str:
        """The certificate as PEM."""
        return self.pem.read_text()

    def server(self) -> ssl.SSLContext:
        """What a server shows it with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.pem, self.key)
        return context


def authority(directory: Path, name: str = "authority") -> Certificate:
    """Make an authority that nobody believes yet."""
    made = Certificate(directory / f"{name}.pem", directory / f"{name}.key")
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-subj", f"/CN={name}", "-days", "2", "-keyout", made.key, "-out", made.pem),
    )
    return made


def signed(
    by: Certificate, directory: Path, name: str = "server", *, names: str = NAMES, days: int = 2
) -> Certificate:
    """Make a server's certificate; with `days` below zero one that has expired already."""
    made = Certificate(directory / f"{name}.pem", directory / f"{name}.key")
    request, more = directory / f"{name}.csr", directory / f"{name}.ext"
    more.write_text(f"subjectAltName={names}\n" if names else "basicConstraints=CA:FALSE\n")
    _openssl(
        *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-subj", "/CN=localhost", "-keyout", made.key, "-out", request),
    )
    _openssl(
        *("x509", "-req", "-in", request, "-CA", by.pem, "-CAkey", by.key, "-CAcreateserial"),
        *("-days", str(days), "-extfile", more, "-out", made.pem),
    )
    return made


def _openssl(*words: str | Path) -> None:
    done = subprocess.run([OPENSSL, *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"openssl {words[0]}: {done.stderr}")
