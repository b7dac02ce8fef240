"""Makes an image start lazily: builds an engine's index of its layers, and pushes it beside them.

The engine's own program does both, over the layers in containerd's store; every layer gets an
index, for one without holds up the mount of the whole image. Credentials reach it in a 0600 file on
tmpfs that is gone afterwards. One image at a time: it reads every byte of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from agent.aio.tasks import finish
from agent.containerd.docker_config import DockerConfig, HostCredentials
from agent.core.registry_hops import plain_http
from agent.errors import FailedPrecondition, RuntimeUnavailable
from agent.model.image_ref import ImageRef, parse_image_ref
from agent.model.spec import RegistrySpec

if TYPE_CHECKING:
    from agent.containerd.client import Containerd
    from agent.containerd.lazy import LazyEngine

INDEX_S = 1800.0
ENGINE_S = 20.0
END_S = 10.0
SAID_CHARS = 500
_DIGEST = re.compile(rb"index with digest: (sha256:[0-9a-f]{64})")


class Indexer:
    """Builds and pushes indexes; `scratch` is a directory on disk, made when it is needed."""

    def __init__(self, containerd: Containerd, scratch: Path) -> None:
        self._door = containerd
        self._scratch = scratch
        self._turn = asyncio.Lock()

    async def accelerate(self, ref: str, registry: RegistrySpec) -> tuple[str, str]:
        """Index an image and push the index; return the index's digest and the engine's name.

        The image is pulled and unpacked first if it is not. Raises FailedPrecondition when no
        engine here makes indexes, or the registry refuses; RuntimeUnavailable when it fails.
        """
        engine = next((one for one in self._door.lazy if one.indexer), None)
        if engine is None:
            raise FailedPrecondition(
                "no program that makes indexes for lazy images is installed: run 'setup/host.sh'"
            )
        reference = parse_image_ref(ref)
        deadline = asyncio.get_running_loop().time() + INDEX_S
        try:
            async with asyncio.timeout_at(deadline), self._turn:
                access = self._door.keyring.access(reference.host, registry)
                await self._door.transfer.pull(reference.full, deadline=deadline, access=access)
                async with engine.in_use():
                    # Its daemon has the directory of indexes, where its program keeps them, too.
                    await engine.up(min(deadline, asyncio.get_running_loop().time() + ENGINE_S))
                    return await self._index(engine, reference, registry), engine.name
        except TimeoutError as error:
            raise RuntimeUnavailable(f"index of {ref}: not done in {INDEX_S:g} s") from error

    async def _index(self, engine: LazyEngine, reference: ImageRef, registry: RegistrySpec) -> str:
        program = [str(engine.indexer), "--address", str(self._door.channel.socket)]
        program += ["--namespace", self._door.channel.namespace]
        plain = ["--plain-http"] if plain_http(reference.host) else []
        name = reference.full
        async with self._environment(engine, reference, registry) as environment:
            await _run([*program, "create", "--min-layer-size", "0", name], environment)
            said = await _run([*program, "push", *plain, name], environment)
        found = _DIGEST.search(said)
        return found[1].decode() if found is not None else ""

    @contextlib.asynccontextmanager
    async def _environment(
        self, engine: LazyEngine, reference: ImageRef, registry: RegistrySpec
    ) -> AsyncIterator[Mapping[str, str]]:
        """Give what the program runs with; its files are gone at the end."""
        self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        given = dict(os.environ)
        private = Path(tempfile.mkdtemp(prefix="push-", dir=engine.directory))
        scratch = Path(tempfile.mkdtemp(prefix="index-", dir=self._scratch))
        given |= {"TMPDIR": str(scratch), "SSL_CERT_FILE": str(engine.authorities)}
        try:
            host = reference.host
            known = await self._door.keyring.access(host, registry).credentials(host)
            if known is not None:
                DockerConfig(private / "config.json").write({host: HostCredentials(known)})
                given["DOCKER_CONFIG"] = str(private)
            if registry.ca_pem:
                # The host's own authorities stay: Go reads their directory besides.
                _write(private / "ca.pem", registry.ca_pem)
                given["SSL_CERT_FILE"] = str(private / "ca.pem")
            yield given
        finally:
            shutil.rmtree(private, ignore_errors=True)
            shutil.rmtree(scratch, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


async def _run(command: list[str], environment: Mapping[str, str]) -> bytes:
    """Run a program to its end and return what it printed; killed if the caller is cancelled.

    Raises FailedPrecondition with its last words.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        said, complained = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await finish(f"end {command[0]}", process.wait(), within_s=END_S)
    if process.returncode != 0:
        why = complained.decode("utf-8", "replace").strip()[-SAID_CHARS:]
        raise FailedPrecondition(f"{command[5]} of an index for {command[-1]} failed: {why}")
    return said
