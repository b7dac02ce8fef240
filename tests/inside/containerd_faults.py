"""Ends of tasks, restarts of containerd and lost shims, seen through the client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from agent.aio import tasks
from agent.containerd.client import Containerd
from agent.containerd.containers import ContainerRecord
from agent.errors import AgentError
from tests.inside.containerd_anchor import anchor_down, anchor_up, rootfs
from tests.inside.containerd_base import Place, main, pid_alive, settle, shims, soon, spec


def restart(place: Place) -> None:
    """Kill containerd and start another in its place."""
    os.kill(containerd_pid(place), signal.SIGKILL)
    log = (place.dir / "containerd.log").open("ab")
    config = place.dir / "config.toml"
    process = subprocess.Popen(["containerd", "-c", config], stdout=log, stderr=log)
    (place.dir / "containerd.pid").write_text(str(process.pid))


def containerd_pid(place: Place) -> int:
    file = place.dir / "containerd.pid"
    return int(file.read_text() if file.exists() else os.environ["PROBE_CONTAINERD"])


async def run(ct: Containerd, place: Place, id: str, script: str, **fields: Any) -> int:
    args = ["/bin/sh", "-c", script]
    memory = fields.pop("memory_bytes", 0)
    document = spec(place, id, rootfs(place), args, memory_bytes=memory)
    await ct.containers.create(ContainerRecord(id=id, spec=document, **fields), place.options)
    pid = await ct.tasks.create(id)
    await ct.tasks.start(id)
    return pid


async def gone(ct: Containerd, id: str) -> None:
    await ct.tasks.delete(id)
    await ct.containers.delete(id)


async def ends(ct: Containerd, place: Place) -> Any:
    """An exit and a kill are told to who waits, with the facts the shim knows."""
    await run(ct, place, "quick", "exit 3")
    quick = await ct.tasks.wait("quick", deadline=soon())
    await run(ct, place, "stuck", "sleep 100")
    killed = await ct.tasks.kill("stuck", signal.SIGKILL)
    stuck = await ct.tasks.wait("stuck", deadline=soon())
    again = await ct.tasks.kill("quick", signal.SIGTERM)
    for id in ("quick", "stuck"):
        await gone(ct, id)
    return {
        "exits": [quick.status, stuck.status],
        "time_told": quick.exited_ns > 0,
        "kill_told": [killed, again],
    }


async def containerd_killed(ct: Containerd, place: Place) -> Any:
    """kill -9 of containerd: tasks live on, the client reconnects, work goes on."""
    await anchor_up(ct, place, "anchor-r")
    pid = await run(ct, place, "survivor", "sleep 100", sandbox="anchor-r")
    restart(place)
    version = await ct.ready(soon())
    alive = pid_alive(pid)
    listed = {task.id: task.status.name for task in await ct.tasks.list()}
    await run(ct, place, "later", "exit 4", sandbox="anchor-r")
    later = await ct.tasks.wait("later", deadline=soon())
    await gone(ct, "later")
    await ct.tasks.kill("survivor", signal.SIGKILL)
    ended = await ct.tasks.wait("survivor", deadline=soon())
    await gone(ct, "survivor")
    await anchor_down(ct, "anchor-r")
    return {
        "version": bool(version),
        "alive": alive,
        "listed": listed,
        "exits": [later.status, ended.status],
        "shims_left": not await settle(lambda: not shims()),
    }


async def shim_killed(ct: Containerd, place: Place) -> Any:
    """kill -9 of an anchor's shim: what containerd says of its tasks, and how all is cleared."""
    await anchor_up(ct, place, "anchor-k")
    pid = await run(ct, place, "orphan", "sleep 100", sandbox="anchor-k")
    anchored = tasks.spawn("wait anchor-k", ct.tasks.wait("anchor-k", deadline=soon(10)))
    orphaned = tasks.spawn("wait orphan", ct.tasks.wait("orphan", deadline=soon(10)))
    await asyncio.sleep(0.1)  # sleeps: containerd says to nobody that it waits
    for shim in shims():
        os.kill(shim, signal.SIGKILL)
    await settle(lambda: not shims())
    results: dict[str, Any] = {"anchor": await verdict(anchored)}
    results["orphan"] = await verdict(orphaned)
    results["orphan_alive"] = pid_alive(pid)
    results["create"] = await verdict(run(ct, place, "late", "true", sandbox="anchor-k"))
    results["kill"] = await verdict(ct.tasks.kill("orphan", signal.SIGKILL))
    results["delete"] = await verdict(ct.tasks.delete("orphan"))
    results["delete_anchor"] = await verdict(ct.tasks.delete("anchor-k"))
    results["tasks"] = {task.id: task.status.name for task in await ct.tasks.list()}
    results["orphan_alive_after"] = pid_alive(pid)
    os.kill(pid, signal.SIGKILL)
    results["swept"] = await settle(lambda: not traces(place, "orphan") or sweep(place, "orphan"))
    for id in ("late", "orphan", "anchor-k"):
        results[f"remove_{id}"] = await verdict(ct.containers.delete(id))
    results["remove_sandbox"] = await verdict(ct.sandboxes.delete("anchor-k"))
    return results


def traces(place: Place, id: str) -> list[str]:
    """What a container has left in the kernel and on disk."""
    found = [str(path) for path in Path("/sys/fs/cgroup").glob(f"*{place.cgroup}/{id}")]
    found += [str(path) for path in (place.crun_state / id, bundle(place, id)) if path.exists()]
    return sorted(found)


def bundle(place: Place, id: str) -> Path:
    return place.dir / "state" / "io.containerd.runtime.v2.task" / "kindling" / id


def sweep(place: Place, id: str) -> bool:
    """Remove what a container without a shim has left, once its processes are gone."""
    for group in Path("/sys/fs/cgroup").glob(f"*{place.cgroup}/{id}"):
        with contextlib.suppress(OSError):
            group.rmdir()
    shutil.rmtree(place.crun_state / id, ignore_errors=True)
    shutil.rmtree(bundle(place, id), ignore_errors=True)
    return not traces(place, id)


async def failed_create(ct: Containerd, place: Place) -> Any:
    """A create that the runtime refuses: what it says, and what is left of the container."""
    await anchor_up(ct, place, "anchor-b")
    results: dict[str, Any] = {}
    for id, sandbox in (("bad-own", ""), ("bad-in", "anchor-b")):
        document = spec(place, id, rootfs(place), ["/bin/nothing"])
        container = ContainerRecord(id=id, spec=document, sandbox=sandbox)
        await ct.containers.create(container, place.options)
        results[id] = await verdict(ct.tasks.create(id))
        results[f"{id}_task"] = await verdict(ct.tasks.delete(id))
        await settle(lambda id=id: not traces(place, id), 1.0)  # type: ignore[misc]
        results[f"{id}_left"] = traces(place, id)
        await ct.containers.delete(id)
        sweep(place, id)
    results["good"] = await run(ct, place, "good", "exit 0", sandbox="anchor-b") > 0
    await ct.tasks.wait("good", deadline=soon())
    await gone(ct, "good")
    await anchor_down(ct, "anchor-b")
    return results


async def verdict(call: Any) -> str:
    try:
        return f"ok {await call}"
    except AgentError as failure:
        return f"{type(failure).__name__}: {failure.message[:200]}"


async def unreachable(ct: Containerd, place: Place) -> Any:
    """Without a containerd every verb is RuntimeUnavailable within its deadline."""
    nobody = Containerd(place.dir / "nobody.sock")
    results: dict[str, Any] = {
        "ready": await verdict(nobody.ready(soon(0.5))),
        "list": await verdict(nobody.tasks.list(deadline=soon(2))),
        "missing": await verdict(ct.containers.get("none")),
        "no_image": await verdict(ct.images.inspect("docker.io/library/none:1")),
    }
    await nobody.close()
    stuck = await run(ct, place, "slow", "sleep 100")
    results["deadline"] = await verdict(ct.tasks.wait("slow", deadline=soon(0.2)))
    results["running"] = await verdict(ct.tasks.delete("slow"))
    results["taken"] = await verdict(
        ct.containers.create(ContainerRecord(id="slow", spec=b"{}"), place.options)
    )
    await ct.tasks.kill("slow", signal.SIGKILL)
    await ct.tasks.wait("slow", deadline=soon())
    await gone(ct, "slow")
    results["ended"] = not pid_alive(stuck)
    return results


if __name__ == "__main__":
    main(ends, containerd_killed, unreachable, failed_create, shim_killed)
