"""A node for tests of the control cycle: a house, a reconciler, and what containerd shows."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from agent.config import LazySettings
from agent.containerd.keyring import Keyring
from agent.containerd.tasks import Task, TaskStatus
from agent.deployments.catalog import Catalog
from agent.deployments.deploy import Deployer, Runners, Stores
from agent.deployments.image_use import ImageUse
from agent.deployments.lazy_image import LazyImages
from agent.model.records import InstanceRecord
from agent.recovery.reconcile import Reconciler
from agent.telemetry.events import Events
from tests.component.function_house import IMAGE, House


class Node(House):
    """A house with a reconciler; containerd shows what the fake builder has, and `others`."""

    async def __aenter__(self):
        self.catalog = Catalog()
        self.stored = []
        self.unfinished = []
        self.others = {}
        self.snapshots = [IMAGE.chain_id]
        containerd: Any = SimpleNamespace(
            containers=SimpleNamespace(list=self._containers),
            tasks=SimpleNamespace(list=self._tasks),
            snapshots=SimpleNamespace(list=self._list_snapshots),
            lazy=(),
            keyring=Keyring(),
        )
        functions: Any = SimpleNamespace(load=self._load)
        calls: Any = SimpleNamespace(unfinished=self._unfinished, save=self._save, lost=self._lost)
        prepared: Any = None  # nothing is mounted lazily
        lazy = LazyImages(LazySettings(), containerd, prepared, Events(), ImageUse())
        stores = Stores(functions, calls, containerd, lazy, self.logs, Events())
        runners = Runners(self.fleet, self.jobs, self.ports.builder)
        deployer = Deployer(self.config, self.catalog, runners, stores)
        self.parts = (self.catalog, deployer, runners, stores, self.files)
        self.reconcile_anew()
        return self

    def reconcile_anew(self):
        """Make the reconciler that a worker with the ledger of now has."""
        self.reconciler = Reconciler(*self.parts, self.ledger)

    async def _load(self):
        return self.stored

    async def _list_snapshots(self):
        return [SimpleNamespace(key=key) for key in self.snapshots]

    async def _unfinished(self):
        await self.points.at("unfinished")
        return tuple(self.unfinished)

    async def _lost(self, id, ended_ns, error):
        """As the store does it: what has ended meanwhile stays as it is."""
        for one in self.unfinished:
            if one.id == id and id not in self.saved:
                self.saved[id] = replace(one, state="Failed", ended_ns=ended_ns, error=error)

    async def _containers(self, filters):
        assert filters == ['labels."kindling.kind"==instance']
        await self.points.at("containers.list")
        return [SimpleNamespace(id=id) for id in [*self.builder.alive, *self.others]]

    async def _tasks(self):
        await self.points.at("tasks.list")
        found = dict.fromkeys(self.builder.alive, TaskStatus.RUNNING)
        return [Task(id, 1, status) for id, status in {**found, **self.others}.items() if status]

    def deploy(self, name="f", **fields):
        target = self.target(name, **fields)
        self.catalog.put(target, latest=True)
        return target

    def left(self, id, *, state="ready", task=TaskStatus.RUNNING, number=5, **fields):
        """An instance of a worker that is gone: its record, and its container."""
        record = InstanceRecord(
            id=id,
            function=fields.pop("function", "f"),
            version=1,
            row=number,
            network_slot=number,
            address="127.0.0.1",
            port=self.port,
            layer_kind="slot512",
            layer_slot=number,
            pid=1,
            state=state,
            created_ns=1,
            **fields,
        )
        self.files.save(record)
        if task is not None:
            self.others[id] = task
        return record

    def records(self):
        return [record.id for record in self.files.each() if isinstance(record, InstanceRecord)]


async def settled(node):
    await node.reconciler.adopt()
    await node.reconciler.clear()


async def gone(node, *targets):
    await asyncio.gather(*(target.stop(grace_s=0.0) for target in targets))
    assert node.held() == {}
