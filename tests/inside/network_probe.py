"""Drives the real network room inside rootlesskit: opens it, leases slots, runs processes in them.

A probe for `rootless_session`: facts out, judged by tests/integration/test_network.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from agent import config
from agent.network import namespace, rtnetlink, sockets
from agent.network.network import Network, NetworkSlot
from agent.network.thread import new_socket
from agent.network.wire import drop
from tests.inside.rootless_session import serve

RUN = Path(os.environ["PROBE_RUN"])


class Probe:
    def __init__(self) -> None:
        self.network: Network | None = None
        self.slots: dict[str, NetworkSlot] = {}
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.listeners: list[asyncio.Server] = []

    @property
    def net(self) -> Network:
        assert self.network is not None
        return self.network

    async def open(self, *, ready: bool = True, **settings: Any) -> str:
        """Open the room as a worker does; `settings` are those of the Network section."""
        self.network = Network(config.NetworkSettings(**{"warm_slots": 2, **settings}), RUN)
        await self.network.open()
        if ready:
            await self.network.ready()
        return repr(self.network)

    async def ready(self) -> None:
        await self.net.ready()

    async def close(self) -> None:
        """End the room as a stopping worker does; processes in slots live on."""
        if self.network is not None:
            await self.network.close()
            self.network = None
        self.slots.clear()

    async def settled(self) -> dict[str, int]:
        """Wait until the keeper has nothing to do, and say how many slots stand where."""
        until = time.monotonic() + 10
        while not self._is_settled() and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return await self.counts()

    def _is_settled(self) -> bool:
        counts = self.net.counts()
        stocked = counts.ready >= self.net._settings.warm_slots
        return stocked and not counts.making and not counts.dirty

    async def counts(self) -> dict[str, int]:
        counts = self.net.counts()
        return {name: getattr(counts, name) for name in counts.__slots__}

    async def lease(self, name: str, egress: Any = "all") -> dict[str, Any]:
        slot = await self.net.lease(egress)
        self.slots[name] = slot
        return {"number": slot.number, "address": slot.address, "inode": inode(slot.netns_path)}

    async def release(self, name: str) -> None:
        slot = self.slots[name]
        await self.net.release(slot)
        await asyncio.sleep(0)
        del self.slots[name]

    async def release_twice(self, name: str) -> None:
        slot = self.slots.pop(name)
        await self.net.release(slot)
        await self.net.release(slot)

    async def adopt(self, name: str, number: int, egress: Any = "all") -> dict[str, Any]:
        pid = self.processes[name].pid
        slot = await self.net.adopt(number, pid, egress)
        self.slots[name] = slot
        return {"number": slot.number, "address": slot.address, "inode": inode(slot.netns_path)}

    async def adopt_pid(self, number: int, pid: int) -> None:
        await self.net.adopt(number, pid, "all")

    async def cancel_leases(self, count: int) -> dict[str, int]:
        """Start leases and cancel each at another moment; then the counts must be whole."""
        for turns in range(count):
            task = asyncio.get_running_loop().create_task(self.net.lease(["10.0.0.0/8"]))
            for _ in range(turns % 7):
                await asyncio.sleep(0)
            await asyncio.sleep(0.0004 * (turns % 5))  # sleeps: another moment each time
            task.cancel()
            try:
                slot = await task
            except asyncio.CancelledError:
                continue
            await self.net.release(slot)
        return await self.settled()

    async def start(self, name: str) -> str:
        """Run a process in a leased slot; returns when it serves."""
        return str(await self._run(name, self.slots[name].netns_path))

    async def _run(self, name: str, path: str) -> Any:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name("slot_process.py")),
            path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.processes[name] = process
        return await self._line(process)

    async def _line(self, process: asyncio.subprocess.Process) -> Any:
        assert process.stdout is not None
        return json.loads(await process.stdout.readline())

    async def ask(self, name: str, *, what: list[Any]) -> Any:
        """Let the process in a slot do something and return its answer."""
        process = self.processes[name]
        assert process.stdin is not None
        process.stdin.write(json.dumps(what).encode() + b"\n")
        await process.stdin.drain()
        return await self._line(process)

    async def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        await process.wait()

    async def fetch(self, address: str, port: int = 9000, take: bool = True) -> list[str]:
        """Connect from the agent's side over a socket of the room and read one reply."""
        sock = self.net.take_socket() if take else None
        if sock is None:
            sock = await self.net.socket()
        loop = asyncio.get_running_loop()
        with sock:
            async with asyncio.timeout(2):
                await loop.sock_connect(sock, (address, port))
                await loop.sock_sendall(sock, b"GET / HTTP/1.0\r\n\r\n")
                data = b""
                while chunk := await loop.sock_recv(sock, 4096):
                    data += chunk
        return [data.decode().split("\r\n")[0], data.decode().rpartition("\r\n\r\n")[2]]

    async def touch(self, address: str, port: int) -> None:
        """Connect from the agent's side, send a byte, wait for the other side to hang up."""
        sock = await self.net.socket()
        loop = asyncio.get_running_loop()
        with sock:
            await loop.sock_connect(sock, (address, port))
            await loop.sock_sendall(sock, b"x")
            await loop.sock_recv(sock, 10)

    async def many_sockets(self, count: int) -> list[int]:
        """Take more sockets than there are in stock, half at once and half by waiting."""
        at_once = [sock for _ in range(count) if (sock := self.net.take_socket()) is not None]
        waited = [await self.net.socket() for _ in range(count)]
        inodes = {os.fstat(sock.fileno()).st_ino for sock in (*at_once, *waited)}
        numbers = [len(at_once), len(waited), len(inodes)]
        for sock in (*at_once, *waited):
            sock.close()
        return numbers

    async def listen_beside_bridge(self, port: int) -> None:
        """Listen on all addresses of the detached namespace: the bridge and tap0."""
        sock = await self.net.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", port))

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.0 200 OK\r\n\r\nbeside the bridge")
            writer.close()

        server = await asyncio.start_server(answer, sock=sock)
        self.listeners.append(server)

    async def links(self) -> list[str]:
        def names() -> list[str]:
            with rtnetlink.open_route() as route:
                return sorted(link.name for link in rtnetlink.links(route))

        return await self.net._thread.call(names)

    async def in_slot(self, name: str) -> dict[str, Any]:
        """What a slot looks like from inside, and how many sockets wait there."""
        slot, home = self.slots[name], self.net._thread.home

        def look() -> dict[str, Any]:
            with namespace.inside(slot.fd, home):
                held = sockets.count()
                with rtnetlink.open_route() as route:
                    return {
                        "sockets": held,
                        "links": [
                            [link.index, link.name, link.up, link.mtu, link.mac]
                            for link in rtnetlink.links(route)
                        ],
                        "addresses": rtnetlink.addresses(route),
                        "routes": [[r.to, r.gateway, r.index] for r in rtnetlink.routes(route)],
                    }

        return await self.net._thread.call(look)

    async def nft(self) -> dict[str, Any]:
        """The sets of the table as nft itself lists them."""

        def run() -> str:
            return subprocess.run(
                ["nft", "-j", "list", "table", "inet", "kindling"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout

        listing = json.loads(await self.net._thread.call(run))["nftables"]
        sets = [item["set"] for item in listing if "set" in item]
        return {one["name"]: one.get("elem", []) for one in sets}

    async def tracked(self) -> list[str]:
        """The tracked connections of the detached namespace, as the kernel prints them."""

        def read() -> str:
            return Path("/proc/thread-self/net/nf_conntrack").read_text()

        return (await self.net._thread.call(read)).splitlines()

    async def check_sums(self, on: bool) -> None:
        """Have the kernel track packets whose checksum is right only, as it does by itself."""
        knob = Path("/proc/sys/net/netfilter/nf_conntrack_checksum")
        await self.net._thread.call(knob.write_text, str(int(on)))

    async def resolv(self) -> str:
        return self.net.resolv_conf.read_text()

    async def measure(self, rounds: int) -> dict[str, float]:
        """Milliseconds of the work on the thread, medians; noted, never judged."""
        thread, pool = self.net._thread, self.net._slots
        assert pool is not None
        wiring = pool._wiring
        assert wiring is not None
        times: dict[str, list[float]] = {"make": [], "restore": [], "socket": []}

        def timed(what: str, run: Any, *args: Any) -> Any:
            begun = time.perf_counter()
            result = run(*args)
            times[what].append(time.perf_counter() - begun)
            return result

        for number in range(900, 900 + rounds):
            made = await thread.call(timed, "make", wiring.make, number)
            await thread.call(timed, "restore", wiring.restore, made)
            (await thread.call(timed, "socket", new_socket)).close()
            drop(made)
        return {what: round(sorted(each)[rounds // 2] * 1e3, 3) for what, each in times.items()}

    async def end(self) -> None:
        for name in list(self.processes):
            await self.kill(name)
        for server in self.listeners:
            server.close()
        await self.close()


def inode(path: str) -> int:
    return os.stat(path).st_ino


if __name__ == "__main__":
    probe = Probe()
    steps = {n: getattr(probe, n) for n in dir(Probe) if not n.startswith("_") and n != "net"}
    serve(steps, probe.end)
