"""Proves anchored shims on the real thing, and measures them against shims of their own."""

from __future__ import annotations

import io
import os
import signal
import statistics
import tarfile
import time
from pathlib import Path
from typing import Any

from agent.containerd.client import Containerd
from agent.containerd.containers import ContainerRecord
from agent.containerd.tasks import TaskOutput
from tests import oci
from tests.inside.containerd_base import (
    Place,
    main,
    parent_of,
    pid_alive,
    settle,
    shims,
    soon,
    spec,
)

ROUNDS = 15


def rootfs(place: Place) -> Path:
    path = place.dir / "rootfs"
    if not path.exists():
        with tarfile.open(fileobj=io.BytesIO(oci.static_busybox().tar)) as tar:
            tar.extractall(path)
    return path


def anchor_spec(place: Place, id: str) -> bytes:
    """An empty directory with one bind-mounted static file: crun looks for args[0] at create."""
    root = place.dir / "anchor-root"
    (root / "dev").mkdir(parents=True, exist_ok=True)
    (root / "init").touch()
    source = "/bin/busybox"
    bind = {"destination": "/init", "type": "bind", "source": source, "options": ["bind", "ro"]}
    return spec(place, id, root, ["/init", "true"], mounts=[bind], namespaces=("pid", "mount"))


async def anchor_up(ct: Containerd, place: Place, id: str) -> int:
    labels = {"kindling.kind": "anchor"}
    container = ContainerRecord(id=id, spec=anchor_spec(place, id), labels=labels)
    await ct.containers.create(container, place.options)
    pid = await ct.tasks.create(id)
    await ct.sandboxes.create(id, place.options, labels)
    return pid


async def anchor_down(ct: Containerd, id: str) -> None:
    await ct.tasks.kill(id, signal.SIGKILL)
    await ct.tasks.wait(id, deadline=soon())
    await ct.tasks.delete(id)
    await ct.sandboxes.delete(id)
    await ct.containers.delete(id)


async def one(ct: Containerd, place: Place, id: str, sandbox: str = "") -> tuple[float, ...]:
    """Make, run and remove a container; ms of create, start and delete."""
    container = ContainerRecord(
        id=id, spec=spec(place, id, rootfs(place), ["/bin/true"]), sandbox=sandbox
    )
    started = time.perf_counter()
    await ct.containers.create(container, place.options)
    await ct.tasks.create(id)
    created = time.perf_counter()
    await ct.tasks.start(id)
    running = time.perf_counter()
    ended = await ct.tasks.wait(id, deadline=soon())
    assert ended.status == 0
    waited = time.perf_counter()
    await ct.tasks.delete(id)
    await ct.containers.delete(id)
    gone = time.perf_counter()
    return tuple(
        round(1000 * span, 2) for span in (created - started, running - created, gone - waited)
    )


async def shared_shim(ct: Containerd, place: Place) -> Any:
    """Two anchored containers live in the anchor's shim; a third of its own gets another."""
    await anchor_up(ct, place, "anchor-a")
    before = shims()
    pids = []
    for id in ("in-1", "in-2"):
        args = ["/bin/sh", "-c", "exit 7"]
        document = spec(place, id, rootfs(place), args)
        await ct.containers.create(
            ContainerRecord(id=id, spec=document, sandbox="anchor-a"), place.options
        )
        pids.append(await ct.tasks.create(id))
    during = shims()
    parents = [parent_of(pid) for pid in pids]
    listed = {task.id: task.status.name for task in await ct.tasks.list()}
    exits = []
    for id in ("in-1", "in-2"):
        await ct.tasks.start(id)
        exits.append((await ct.tasks.wait(id, deadline=soon())).status)
        await ct.tasks.delete(id)
        await ct.containers.delete(id)
    await anchor_down(ct, "anchor-a")
    await settle(lambda: not shims())
    return {
        "shims_before": before,
        "shims_during": during,
        "parents": parents,
        "listed": listed,
        "exits": exits,
        "shims_after": shims(),
        "sandboxes_after": await ct.sandboxes.list(),
    }


async def by_fifo(ct: Containerd, place: Place) -> Any:
    """A created task started by crun's exec.fifo ends properly for containerd."""
    await anchor_up(ct, place, "anchor-f")
    output = TaskOutput(place.dir / "fifo-out", place.dir / "fifo-err")
    readers = []
    for path in (output.stdout, output.stderr):
        os.mkfifo(path)
        readers.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    args = ["/bin/sh", "-c", "echo hello; echo bad >&2; exit 5"]
    document = spec(place, "standby", rootfs(place), args)
    await ct.containers.create(
        ContainerRecord(id="standby", spec=document, sandbox="anchor-f"), place.options
    )
    pid = await ct.tasks.create("standby", output)
    fifo = place.crun_state / "standby" / "exec.fifo"
    started = time.perf_counter()
    fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    fifo.unlink()
    os.write(fd, b"0")
    os.close(fd)
    ended = await ct.tasks.wait("standby", deadline=soon())
    waited_ms = round(1000 * (time.perf_counter() - started), 2)
    status = (await ct.tasks.get("standby")).status.name
    text = [os.read(reader, 100).decode() for reader in readers]
    deleted = await ct.tasks.delete("standby")
    await ct.containers.delete("standby")
    await anchor_down(ct, "anchor-f")
    return {
        "exit": ended.status,
        "status": status,
        "output": text,
        "deleted": deleted.status,
        "to_exit_ms": waited_ms,
        "pid_gone": not pid_alive(pid),
    }


async def timings(ct: Containerd, place: Place) -> Any:
    """Medians in ms of create, start, delete: a shim each against the anchor's."""
    await anchor_up(ct, place, "anchor-t")
    own, anchored = [], []
    for number in range(ROUNDS):
        own.append(await one(ct, place, f"own-{number}"))
        anchored.append(await one(ct, place, f"with-{number}", "anchor-t"))
    await anchor_down(ct, "anchor-t")

    def medians(rows: list[tuple[float, ...]]) -> dict[str, float]:
        columns = zip(*rows, strict=True)
        names = ("create", "start", "delete")
        return {n: statistics.median(c) for n, c in zip(names, columns, strict=True)}

    return {"own": medians(own), "anchored": medians(anchored)}


if __name__ == "__main__":
    main(shared_shim, by_fifo, timings)
