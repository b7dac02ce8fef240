"""Pulls from a real registry on loopback; the images are named by PULL_* in the environment."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import Any

from agent.containerd import silence
from agent.containerd.client import Containerd
from agent.containerd.registry import Resolved
from agent.containerd.silence import Progress
from agent.containerd.snapshots import view_key
from agent.errors import AgentError, InvalidSpec, Problem
from tests.inside.containerd_base import Place, main, soon
from tests.inside.containerd_images import left

REGISTRY = os.environ.get("PULL_REGISTRY", "")


async def drop(ct: Containerd, name: str, chain_id: str) -> None:
    await ct.snapshots.remove(view_key(chain_id))
    await ct.images.delete(name, sync=True)


async def good(ct: Containerd, place: Place) -> Any:
    """Tags, indexes, digests and docker's format arrive unpacked under their full name."""
    results: dict[str, Any] = {}
    for kind in ("plain:1", "mixed:1", "docker:1", os.environ["PULL_DIGEST"]):
        steps: list[Progress] = []
        image = await ct.transfer.pull(f"{REGISTRY}/{kind}", deadline=soon(), progress=steps.append)
        layers = await ct.snapshots.image_layers(image.chain_id)
        again: list[Progress] = []
        same = await ct.transfer.pull(f"{REGISTRY}/{kind}", deadline=soon(), progress=again.append)
        results[kind.split("@", maxsplit=1)[0]] = {
            "name": image.name,
            "digest": image.digest,
            "unpacked": bool(image.unpacked_bytes),
            "has_shell": os.path.lexists(f"{layers[-1]}/bin/sh"),
            "progress": sorted({step.event.split(" ", 1)[0] for step in steps}),
            "same": same == image,
            "again": len(again),
        }
        await drop(ct, image.name, image.chain_id)
    results["left"] = await left(ct)
    return results


async def moved_tag(ct: Containerd, place: Place) -> Any:
    """The name follows the tag: pulling another image under the same name replaces it."""
    first = await ct.transfer.pull(f"{REGISTRY}/plain:1", deadline=soon())
    record = await ct.images.get(f"{REGISTRY}/plain:1")
    docker = await ct.transfer.pull(f"{REGISTRY}/docker:1", deadline=soon())
    await ct.images.put(first.name, (await ct.images.get(docker.name)).target, {})
    back = await ct.transfer.pull(f"{REGISTRY}/plain:1", deadline=soon())
    result = {"same": back.digest == first.digest == record.target.digest}
    for image in (back, docker):
        await drop(ct, image.name, image.chain_id)
    return result


async def mounts_nothing(ct: Containerd, place: Place) -> Any:
    """What an engine cannot mount is fetched; overlayfs is one that never mounts a layer."""
    seen: list[Progress] = []

    async def overlay(found: Resolved) -> str:
        return ct.transfer.snapshotter

    image = await ct.transfer.pull(
        f"{REGISTRY}/plain:1", deadline=soon(), choose=overlay, progress=seen.append
    )
    layers = await ct.snapshots.image_layers(image.chain_id)
    active = [one.key for one in await ct.snapshots.list() if one.kind == "active"]
    result = {
        "has_shell": os.path.lexists(f"{layers[-1]}/bin/sh"),
        "fetched": any(step.done_bytes for step in seen),
        "active": active,
    }
    await drop(ct, image.name, image.chain_id)
    return result | {"left": await left(ct)}


async def refused(ct: Containerd, place: Place) -> Any:
    """What cannot be had is one clear error of the right class, and leaves nothing."""
    with socket.socket() as closed, socket.socket() as silent:
        closed.bind(("127.0.0.1", 0))
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        cases = {
            "no_tag": f"{REGISTRY}/plain:none",
            "no_repository": f"{REGISTRY}/nothing:1",
            "arm": f"{REGISTRY}/arm:1",
            "arm_index": f"{REGISTRY}/armindex:1",
            "artifact": f"{REGISTRY}/artifact:1",
            "lost_layer": f"{REGISTRY}/lost:1",
            "no_digest": f"{REGISTRY}/plain@sha256:{'0' * 64}",
            "down": f"127.0.0.1:{closed.getsockname()[1]}/plain:1",
            "silent": f"127.0.0.1:{silent.getsockname()[1]}/plain:1",
            "malformed": f"{REGISTRY}/Plain:1",
        }
        results: dict[str, Any] = {}
        for kind, ref in cases.items():
            seconds = 1.0 if kind == "silent" else 30.0
            results[kind] = await outcome(ct, ref, seconds)
    results["too_large"] = await outcome(ct, f"{REGISTRY}/plain:1", 30.0, accept=too_large)
    results["left"] = await left(ct)
    return results


def too_large(found: Resolved) -> None:
    size = found.manifest.compressed_bytes
    raise InvalidSpec([Problem("image", f"{size} bytes are more than the contract allows")])


async def outcome(ct: Containerd, ref: str, seconds: float, **options: Any) -> Any:
    try:
        await ct.transfer.pull(ref, deadline=soon(seconds), **options)
    except AgentError as failure:
        blobs = await ct.content.count()
        return {"class": type(failure).__name__, "text": failure.message, "blobs": blobs}
    return {"class": None}


async def fallen_silent(ct: Containerd, place: Place) -> Any:
    """A server that stops in the middle and keeps the connection is asked for the rest."""
    silence.SILENCE_S = 1.0
    try:
        image = await ct.transfer.pull(f"{os.environ['PULL_SILENT']}/stall:1", deadline=soon(60))
        await drop(ct, image.name, image.chain_id)
        return {"digest": image.digest, "left": await left(ct)}
    finally:
        silence.SILENCE_S = 60.0


async def cancelled(ct: Containerd, place: Place) -> Any:
    """A pull that is cancelled in the middle keeps what it has until that is given up."""
    task = asyncio.get_running_loop().create_task(
        ct.transfer.pull(f"{REGISTRY}/big:1", deadline=soon())
    )
    while not await ct.leases.list():  # noqa: ASYNC110 - containerd has no event for it
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.02)  # sleeps: how far the pull has come: no step of it tells anybody
    task.cancel()
    ended = await asyncio.wait({task}, timeout=20)
    kept = await left(ct)
    given = await ct.leases.give_up(), await ct.leases.give_up()
    await ct.leases.collect(deadline=soon())
    until, remains = time.monotonic() + 5, await left(ct)
    while remains["blobs"] and time.monotonic() < until:
        await asyncio.sleep(0.1)
        remains = await left(ct)
    return {
        "cancelled": bool(ended[0]) and task.cancelled(),
        "kept": len(kept["leases"]),
        "given": given,
        "left": remains,
    }


if __name__ == "__main__":
    main(good, moved_tag, mounts_nothing, refused, fallen_silent, cancelled)
