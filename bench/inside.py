"""Runs in the peers' house: starts peers, asks them for a first reply, takes them away again.

One JSON line in, one out. Peers join the house's network namespace, which is ready as Kindling's
slots are, and are asked over its loopback by the same client that asks an agent. The clock starts
before the command does. Nothing here knows an agent, except as a port.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench import probe

WORK = Path(os.environ.get("BENCH_WORK", "/nowhere"))
GROUP = os.environ.get("BENCH_GROUP", "")
SOCKET = WORK / "containerd.sock"
IMAGE = "kindling.local/static:1"
NAMESPACE = "bench"
REPLY_S = 30.0
CREATED_S = 0.2  # a container that waits for its start waits for longer than a moment
PULL_S = 300.0
CTR = ("ctr", "--address", str(SOCKET), "--namespace", NAMESPACE)
RUNTIMES = ("crun", "runc")
BUNDLE = WORK / "bundle"
NETNS = WORK / "rootlesskit" / "netns"


def ready() -> str:
    """Wait for containerd, import the image, write the bundle's spec."""
    for _ in range(500):
        if run(*CTR, "version", check=False) == 0:
            break
        time.sleep(0.02)
    for archive in sorted(WORK.glob("*.tar")):
        load(str(archive))
    for runtime in RUNTIMES:
        write_spec(runtime)
    return "ready"


def load(archive: str) -> str:
    """Import an archive into containerd; its layers are unpacked."""
    run(*CTR, "image", "import", "--snapshotter", "overlayfs", archive)
    return "loaded"


def write_spec(runtime: str) -> None:
    """Let a runtime write its own default spec, changed only where server and house need it."""
    written = BUNDLE / "config.json"
    written.unlink(missing_ok=True)
    subprocess.run([runtime, "spec"], cwd=BUNDLE, check=True)
    spec = json.loads(written.read_text())
    spec["process"] |= {"terminal": False, "args": ["/server"]}
    for one in spec["linux"]["namespaces"]:
        if one["type"] == "network":
            one["path"] = str(NETNS)
    spec_of(runtime).write_text(json.dumps(spec))
    written.unlink()


def spec_of(runtime: str) -> Path:
    """Return where the spec that a runtime wrote is kept."""
    return WORK / f"{runtime}.json"


def http(port: int, path: str) -> dict[str, Any]:
    """Ask an agent's endpoint for one reply."""
    took_ms, reply = probe.call(port, path, REPLY_S)
    return {"ms": took_ms, "phases": probe.phases(reply)}


def crun(id: str, port: int) -> dict[str, Any]:
    """Measure `crun run` of the static server to its first reply."""
    return bare("crun", id, port)


def runc(id: str, port: int) -> dict[str, Any]:
    """Measure `runc run` of the static server to its first reply."""
    return bare("runc", id, port)


def bare(runtime: str, id: str, port: int) -> dict[str, Any]:
    """Measure `run` of a runtime with nothing above it."""
    write_bundle(runtime, id, port)
    root = root_of(runtime)
    return measured(
        port,
        [*root, "run", "--bundle", str(BUNDLE), id],
        lambda: run(*root, "kill", id, "KILL", check=False),
    )


def crun_start(id: str, port: int) -> dict[str, Any]:
    """Measure `crun start` of a created container of the static server to its first reply."""
    write_bundle("crun", id, port)
    root = root_of("crun")
    nowhere = os.open("/dev/null", os.O_RDWR)  # it inherits them: a pipe of ours would stay open
    try:
        create = [*root, "create", "--bundle", str(BUNDLE), id]
        subprocess.run(create, stdin=nowhere, stdout=nowhere, stderr=nowhere, check=True)
    finally:
        os.close(nowhere)
    time.sleep(CREATED_S)
    try:
        return measured(
            port, [*root, "start", id], lambda: run(*root, "kill", id, "KILL", check=False)
        )
    finally:
        run(*root, "delete", "--force", id, check=False)


def write_bundle(runtime: str, id: str, port: int) -> None:
    """Write the spec of one container into the bundle, from the runtime's own."""
    spec = json.loads(spec_of(runtime).read_text())
    spec["process"]["env"] = [f"FC_CUSTOM_LISTEN_PORT={port}"]
    spec["linux"]["cgroupsPath"] = f"{GROUP}/{id}"
    (BUNDLE / "config.json").write_text(json.dumps(spec))


def root_of(runtime: str) -> tuple[str, ...]:
    """Return the beginning of a runtime's command: what it keeps is below the house."""
    return (runtime, "--root", str(WORK / runtime))


def ctr(
    id: str,
    port: int,
    ref: str = IMAGE,
    path: str = "/",
    arguments: Sequence[str] = (),
    environment: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure `ctr run` (runc, containerd's default) of an image to its first reply."""
    given = [word for one in environment for word in ("--env", one)]
    return measured(
        port,
        [*ctr_run(port, id, "--rm", *given), ref, id, *arguments],
        lambda: run(*CTR, "task", "kill", "--signal", "KILL", id, check=False),
        path,
    )


def client(program: str) -> dict[str, Any]:
    """Measure a peer's command that does nothing: its own start, a part of what it is told to do.

    Commands written in Go take some of their time for this, whatever they are asked.
    """
    found = shutil.which(program)
    assert found is not None, program
    nowhere = os.open("/dev/null", os.O_RDWR)
    actions = [(os.POSIX_SPAWN_DUP2, nowhere, 1)]
    mark = time.perf_counter()
    pid = os.posix_spawn(found, [program, "--version"], os.environ, file_actions=actions)
    os.waitpid(pid, 0)
    took_ms = (time.perf_counter() - mark) * 1000
    os.close(nowhere)
    return {"ms": took_ms}


def ctr_run(port: int, id: str, *more: str) -> list[str]:
    """Return `ctr run` without image and id."""
    return [
        *(
            *CTR,
            "run",
            "--with-ns",
            f"network:{NETNS}",
            "--runc-binary",
            "runc",
            "--cgroup",
            f"{GROUP}/{id}",
        ),
        *("--env", f"FC_CUSTOM_LISTEN_PORT={port}", *more),
    ]


def measured(
    port: int, command: list[str], kill: Callable[[], object], path: str = "/"
) -> dict[str, Any]:
    """Start a command in the foreground, ask it for a reply, end it and wait for its end."""
    nowhere = os.open("/dev/null", os.O_RDWR)
    program = shutil.which(command[0])
    assert program is not None, command[0]
    actions = [(os.POSIX_SPAWN_DUP2, nowhere, 0), (os.POSIX_SPAWN_DUP2, nowhere, 1)]
    mark = time.perf_counter()
    pid = os.posix_spawn(program, command, os.environ, file_actions=actions)
    try:
        took_ms, _ = probe.call_when_up(port, mark, REPLY_S, path)
    finally:
        os.close(nowhere)
        kill()
        end = time.monotonic() + 10
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() >= end:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)
    return {"ms": took_ms}


def ctr_pull(ref: str, hosts: str, id: str, port: int) -> dict[str, Any]:
    """Measure `ctr image pull` and `ctr run --detach` to the first reply, then take all away."""
    mark = time.perf_counter()
    try:
        run(*CTR, "image", "pull", "--hosts-dir", hosts, ref)
        run(*ctr_run(port, id, "--detach", "--null-io"), ref, id)
        took_ms, _ = probe.call_when_up(port, mark, PULL_S)
    finally:
        run(*CTR, "task", "kill", "--signal", "KILL", id, check=False)
        run(*CTR, "task", "delete", id, check=False)
        run(*CTR, "container", "delete", id, check=False)
        run(*CTR, "image", "rm", "--sync", ref, check=False)
    return {"ms": took_ms}


def plain_start(id: str, port: int) -> dict[str, Any]:
    """Measure `ctr run --detach` to the first reply; the container goes on."""
    mark = time.perf_counter()
    run(*ctr_run(port, id, "--detach", "--null-io"), IMAGE, id)
    took_ms, _ = probe.call_when_up(port, mark, REPLY_S)
    return {"ms": took_ms}


def plain_end(id: str) -> dict[str, Any]:
    """Measure the end of a plain containerd container: kill, wait, delete task, record, snapshot.

    By gRPC over an open channel, as the agent would: a command's start is no part of it.
    """
    return {"ms": asyncio.run(_delete(id))}


async def _delete(id: str) -> float:
    from agent.containerd.client import Containerd

    containerd = Containerd(SOCKET, NAMESPACE)
    try:
        deadline = asyncio.get_running_loop().time() + REPLY_S
        await containerd.ready(deadline)
        mark = time.perf_counter()
        await containerd.tasks.kill(id, signal.SIGKILL, everyone=True)
        await containerd.tasks.wait(id, deadline=deadline)
        await containerd.tasks.delete(id)
        await containerd.containers.delete(id)
        await containerd.snapshots.remove(id)
        return (time.perf_counter() - mark) * 1000
    finally:
        await containerd.close()


def plain_burst(ids: list[str], ports: list[int], width: int) -> dict[str, Any]:
    """Measure many `ctr run --detach`, `width` at a time, until every one has replied."""
    mark = time.perf_counter()
    with ThreadPoolExecutor(width, initializer=enter) as starters:
        list(starters.map(plain_start, ids, ports))
    return {"ms": (time.perf_counter() - mark) * 1000}


def run(*command: str, check: bool = True) -> int:
    """Run a command; its output goes to the house's log."""
    done = subprocess.run(command, stdout=sys.stderr, check=check, stdin=subprocess.DEVNULL)
    return done.returncode


MEASUREMENTS: dict[str, Callable[..., Any]] = {
    one.__name__: one
    for one in (
        *(ready, load, http, crun, runc, crun_start, ctr, client),
        *(ctr_pull, plain_start, plain_end, plain_burst),
    )
}


def enter() -> None:
    """Move the calling thread into the peers' network namespace."""
    from agent.network import namespace

    # SAFETY: called once on each thread of our own that runs nothing but measurements of peers.
    fd = os.open(NETNS, os.O_RDONLY | os.O_CLOEXEC)
    namespace.enter(fd)
    os.close(fd)


def main() -> None:
    """Answer requests until standard input closes."""
    with ThreadPoolExecutor(1, initializer=enter) as beside_peers:
        for line in sys.stdin:
            request = json.loads(line)
            measure = MEASUREMENTS[request.pop("what")]
            try:
                if measure is http:
                    answer = {"result": measure(**request)}
                else:
                    answer = {"result": beside_peers.submit(measure, **request).result()}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            with suppress(BrokenPipeError):
                os.write(1, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
