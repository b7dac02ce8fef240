"""A registry behind a link of 200 Mbit/s and 10 ms, in a network namespace of its own.

tbf at both ends limits the rate, `bench.relay` inside the namespace adds the delay. The registry
speaks TLS under the namespace's address, as lazy engines want it. Bytes over time are read from the
link's own counter. Nothing of it is left afterwards.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests import certificates, registry

NAMESPACE = "kindling-bench"
HERE, THERE = "10.213.77.1", "10.213.77.2"
PORT, HIDDEN_PORT = 5443, 5444
DEVICES = ("kdbench0", "kdbench1")
RATE = "200mbit"
ONE_WAY_S = 0.005
ADDRESS = f"{THERE}:{PORT}"
SAMPLE_S = 0.05

TLS_CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "127.0.0.1:{port}", tls: {{certificate: {pem}, key: {key}}}}}
"""


@dataclass
class Watched:
    """Bytes that came over the link since a moment: (seconds, bytes), one every SAMPLE_S."""

    points: list[tuple[float, int]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """All of them."""
        return self.points[-1][1] if self.points else 0


class Link:
    """The link and the registry at its end. `authority` is what its certificate hangs on."""

    def __init__(self, authority: certificates.Certificate, directory: Path) -> None:
        self.authority = authority
        self.directory = directory

    @contextmanager
    def watching(self) -> Iterator[Watched]:
        """Note the link's counter while the block runs."""
        counter = Path(f"/sys/class/net/{DEVICES[0]}/statistics/rx_bytes")
        watched, over = Watched(), threading.Event()
        begin, mark = int(counter.read_text()), time.perf_counter()

        def note() -> None:
            while True:
                now = time.perf_counter() - mark
                watched.points.append((now, int(counter.read_text()) - begin))
                if over.wait(SAMPLE_S):
                    return

        thread = threading.Thread(target=note)
        thread.start()
        try:
            yield watched
        finally:
            over.set()
            thread.join()


@contextmanager
def opened(directory: Path) -> Iterator[Link]:
    """Open the link; the registry serves what was pushed into `directory` (`pushing`)."""
    authority = certificates.authority(directory)
    server = certificates.signed(authority, directory, names=f"IP:{THERE}")
    config = directory / "tls.yml"
    text = TLS_CONFIG.format(
        root=directory / "registry", port=HIDDEN_PORT, pem=server.pem, key=server.key
    )
    config.write_text(text)
    with ExitStack() as stack:
        stack.enter_context(_wire())
        inside = ("ip", "netns", "exec", NAMESPACE)
        relay = (sys.executable, "-m", "bench.relay", ADDRESS, f"127.0.0.1:{HIDDEN_PORT}")
        for command in (
            (*inside, str(registry.BINARY), "serve", str(config)),
            (*inside, *relay, str(ONE_WAY_S)),
        ):
            stack.enter_context(_process(command, directory / "link.log"))
        _wait_until_it_answers()
        yield Link(authority, directory)


@contextmanager
def pushing(directory: Path) -> Iterator[str]:
    """Serve the same storage on loopback without a link, to push into it; gives host:port."""
    with registry.registry(directory) as address:
        yield address


@contextmanager
def _wire() -> Iterator[None]:
    here, there = DEVICES
    inside = ("ip", "-n", NAMESPACE)
    shaping = ("root", "tbf", "rate", RATE, "burst", "256kb", "latency", "100ms")
    _run("ip", "netns", "add", NAMESPACE)
    try:
        _run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", NAMESPACE)
        _run("ip", "address", "add", f"{HERE}/30", "dev", here)
        _run(*inside, "address", "add", f"{THERE}/30", "dev", there)
        _run("ip", "link", "set", here, "up")
        _run(*inside, "link", "set", there, "up")
        _run(*inside, "link", "set", "lo", "up")
        _run("tc", "qdisc", "add", "dev", here, *shaping)
        _run("tc", "-n", NAMESPACE, "qdisc", "add", "dev", there, *shaping)
        yield
    finally:
        _run("ip", "netns", "delete", NAMESPACE)  # takes the link along


@contextmanager
def _process(command: tuple[str, ...], log: Path) -> Iterator[None]:
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out)
        try:
            yield
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.terminate()
            process.wait(10)


def _wait_until_it_answers() -> None:
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        # The relay listens before the registry does.
        with suppress(OSError), socket.create_connection((THERE, PORT), 1) as sock:
            anybody.wrap_socket(sock).close()
            return
        time.sleep(0.05)  # sleeps: between two tries to connect
    raise AssertionError(f"nothing answers at {ADDRESS}")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.stderr}")
