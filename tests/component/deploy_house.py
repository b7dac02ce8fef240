"""Deploys over a real store: a house with a deployer, and a registry that a test fills."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from agent.config import LazySettings
from agent.containerd.keyring import Keyring
from agent.core import oci_image
from agent.core.oci_image import Descriptor, ImageConfig, Manifest
from agent.deployments.catalog import Catalog
from agent.deployments.deploy import Deployer, Runners, Stores
from agent.deployments.lazy_image import LazyImages
from agent.errors import (
    NotFound,
    RuntimeUnavailable,
)
from agent.model.image_ref import parse_image_ref
from agent.model.spec_parse import parse_spec
from agent.store.functions import FunctionStore
from agent.telemetry.events import Events
from tests.component.function_house import IMAGE, House


class FakeStore:
    """The real store behind failpoints."""

    def __init__(self, real, points):
        self.real = real
        self.points = points

    async def put(self, version, *, latest):
        await self.points.at("put")
        await self.real.put(version, latest=latest)

    async def remove(self, name):
        await self.points.at("remove")
        return await self.real.remove(name)


class Town(House):
    """A house with a deployer; `images` are what the registry has."""

    async def __aenter__(self):
        self.store = await FunctionStore.open(self.path / "functions.db")
        self.catalog = Catalog()
        self.events = Events()
        self.images = {"docker.io/library/x:1": IMAGE, "kindling.local/x:1": IMAGE}
        self.compressed, self.unpacked = [1], 1
        self.layer_type = oci_image.DOCKER_LAYER + ".gzip"
        self.records = {}
        self.labels: list[dict[str, str]] = [{}]  # of the snapshots, topmost first
        self.pulls = []
        self.allowed_s = 0.0  # of the last pull
        self.far = {}
        self.shown = []
        self.keyring = Keyring()
        self.blobs = {}
        self.registry_down = False
        containerd: Any = SimpleNamespace(
            images=SimpleNamespace(
                inspect=self._inspect,
                get=self._get,
                put=self._put,
                delete=self._delete,
                list=self._list,
            ),
            transfer=SimpleNamespace(pull=self._pull, resolve=self._resolve, present=self._present),
            lazy=(),
            keyring=self.keyring,
            snapshots=SimpleNamespace(chain=self._chain),
            content=SimpleNamespace(sizes=self._sizes),
        )
        functions = cast(FunctionStore, FakeStore(self.store, self.points))
        calls: Any = None  # no deploy asks for a call
        prepared: Any = None  # nothing is mounted lazily
        use = self.catalog.image_use
        lazy = LazyImages(LazySettings(), containerd, prepared, self.events, use)
        stores = Stores(functions, calls, containerd, lazy, self.logs, self.events)
        runners = Runners(self.fleet, self.jobs, self.ports.builder)
        self.deployer = Deployer(self.config, self.catalog, runners, stores)
        return self

    async def __aexit__(self, *_):
        await self.store.close()
        await super().__aexit__(*_)

    async def _inspect(self, name):
        await self.points.at("inspect")
        if name not in self.records and not name.startswith("kindling.local/"):
            raise NotFound(name)
        return self._image(name)

    def _image(self, name):
        if name not in self.images:
            raise NotFound(name)
        facts = self.images[name]
        if name in self.records:
            facts = replace(facts, digest=self.records[name].target.digest)
        return SimpleNamespace(
            name=name,
            digest=facts.digest,
            manifest=self._manifest(),
            unpacked_bytes=self.unpacked,
            facts=lambda: facts,
            blobs=lambda: ("sha256:0", "sha256:1"),
        )

    async def _sizes(self):
        return dict(self.blobs)

    def _manifest(self):
        layers = [Descriptor(self.layer_type, "sha256:1", size) for size in self.compressed]
        return Manifest("m", Descriptor("c", "sha256:0", 0), tuple(layers))

    async def _pull(self, name, *, deadline, accept, access, choose=None, progress=None):
        self.pulls.append(name)
        self.allowed_s = deadline - asyncio.get_running_loop().time()
        self.shown.append(await access.credentials(parse_image_ref(name).host))
        await self.points.at("pull")
        if self.registry_down:
            raise RuntimeUnavailable("the registry does not answer")
        if name in self.images:
            config = ImageConfig((self.images[name].chain_id,))
            found: Any = SimpleNamespace(manifest=self._manifest(), config=config)
            accept(found)
            assert choose is None or await choose(found) == ""
            self.blobs |= {"sha256:0": 10, "sha256:1": 500}
            self.records[name] = record(self.images[name].digest)
        return self._image(name)

    async def _list(self):
        return [SimpleNamespace(name=name, **vars(one)) for name, one in self.records.items()]

    async def _chain(self, chain_id):
        return [SimpleNamespace(labels=labels) for labels in self.labels]

    async def _resolve(self, name, *, deadline, access):
        """Nobody resolves unless the test has `far`: images that a pull brings later."""
        if name not in self.far:
            raise RuntimeUnavailable("the registry does not answer")
        return SimpleNamespace(
            target=SimpleNamespace(digest=self.far[name].digest),
            manifest=self._manifest(),
            config=ImageConfig((self.far[name].chain_id,)),
        )

    async def _present(self, name, found, deadline):
        return await self._inspect(name) if name in self.records else None

    async def _get(self, name):
        if name not in self.records:
            raise NotFound(name)
        return self.records[name]

    async def _put(self, name, target, labels):
        self.records[name] = SimpleNamespace(target=target, labels=labels)

    async def _delete(self, name):
        await self.points.at("delete image")
        del self.records[name]

    def spec(self, name="f", **fields):
        data = {"name": name, "image": "x:1", "contract": "fc", "kind": "http", "port": self.port}
        return parse_spec({**data, **fields})

    async def deploy(self, name="f", *, wait=False, **fields):
        return await self.deployer.deploy(self.spec(name, **fields), wait=wait)

    async def stored(self):
        return {
            f.name: (f.latest, [v.version for v in f.versions]) for f in await self.store.load()
        }

    def deployed(self):
        return {f.name: (f.latest, sorted(f.versions)) for f in self.catalog.functions()}


def record(digest):
    return SimpleNamespace(target=Descriptor("m", digest, 1), labels={})
