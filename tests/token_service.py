"""A token service as registries name them: by GET or POST, signing with a key made on the spot.

Debian's docker-registry believes a token whose header carries a certificate (x5c) that it has in
its bundle. The service counts what it was asked for, and by whom.
"""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.certificates import OPENSSL, Certificate

ISSUER, SERVICE = "kindling-tests", "registry.test"
AUTH = (
    'auth: {{token: {{realm: "{realm}", service: {service}, issuer: {issuer}, '
    'rootcertbundle: "{bundle}"}}}}'
)


class TokenService(ThreadingHTTPServer):
    """Knows one user's password and one identity token; knobs say how it behaves.

    `life_s` is how long its tokens hold, but the registry gives them a minute more.
    """

    daemon_threads = True

    def __init__(
        self,
        signer: Certificate,
        user: str,
        password: str,
        identity: str,
        *,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__((host, 0), _Request)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.realm = f"http{'s' if tls else ''}://{host}:{self.server_address[1]}/token"
        self.signer = signer
        self.user, self.password, self.identity = user, password, identity
        self.takes = {"GET", "POST"}
        self.name = "access_token"
        self.life_s = 300
        self.asked: list[tuple[str, str]] = []

    @property
    def basic(self) -> str:
        return base64.b64encode(f"{self.user}:{self.password}".encode()).decode()

    def section(self) -> str:
        """The registry's configuration that names this service."""
        return AUTH.format(realm=self.realm, service=SERVICE, issuer=ISSUER, bundle=self.signer.pem)

    def token(self, scopes: list[str], life_s: int = 300) -> str:
        """Sign a token for these scopes."""
        now_s = int(time.time())
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":", 2)
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        der = base64.b64encode(_der(self.signer.pem)).decode()
        head = {"typ": "JWT", "alg": "RS256", "x5c": [der]}
        claims = {
            **{"iss": ISSUER, "sub": self.user, "aud": SERVICE, "jti": str(time.monotonic_ns())},
            **{"nbf": now_s - 10, "iat": now_s, "exp": now_s + life_s, "access": access},
        }
        text = f"{_coded(json.dumps(head).encode())}.{_coded(json.dumps(claims).encode())}"
        sign: list[str | Path] = [OPENSSL, "dgst", "-sha256", "-sign", self.signer.key]
        signed = subprocess.run(sign, input=text.encode(), capture_output=True, check=True)
        return f"{text}.{_coded(signed.stdout)}"


class _Request(BaseHTTPRequestHandler):
    server: TokenService
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        service, fields = self.server, parse_qs(urlsplit(self.path).query)
        shown = self.headers.get("Authorization", "")
        known = shown == f"Basic {service.basic}"
        self._answer(fields, "password" if shown else "nobody", known)

    def do_POST(self) -> None:
        service = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        fields = parse_qs(body.decode())
        grant = fields.get("grant_type", [""])[0]
        if grant == "refresh_token":
            known = fields["refresh_token"] == [service.identity]
        else:
            known = (fields["username"], fields["password"]) == (
                *([service.user], [service.password]),
            )
        self._answer(fields, grant, known)

    def _answer(self, fields: dict[str, list[str]], how: str, known: bool) -> None:
        service = self.server
        service.asked.append((self.command, how))
        if self.command not in service.takes:
            self._say(405, {})
        elif not known:
            # Some repeat what they were given.
            self._say(401, {"errors": [{"code": "DENIED", "message": str(fields)}]})
        else:
            assert fields["service"] == [SERVICE]
            scopes = [one for text in fields.get("scope", []) for one in text.split()]
            token = service.token(scopes, service.life_s)
            self._say(200, {service.name: token, "expires_in": max(service.life_s, 60)})

    def _say(self, status: int, answer: dict[str, object]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def token_service(
    directory: Path,
    user: str,
    password: str,
    identity: str,
    *,
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
) -> Iterator[TokenService]:
    """Run a service whose signing key and certificate lie below `directory`."""
    signer = Certificate(directory / "signer.pem", directory / "signer.key")
    subprocess.run(
        [
            *(OPENSSL, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=signer"),
            *("-days", "2", "-keyout", signer.key, "-out", signer.pem),
        ],
        capture_output=True,
        check=True,
    )
    service = TokenService(signer, user, password, identity, host=host, tls=tls)
    thread = threading.Thread(target=service.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.shutdown()
        service.server_close()
        thread.join(10)


def _der(pem: Path) -> bytes:
    lines = pem.read_text().splitlines()
    return base64.b64decode("".join(lines[1:-1]))


def _coded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
