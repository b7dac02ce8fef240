"""What is collected when: marks, last uses, what never goes, and what nobody owns."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from agent.aio.tasks import spawn, stop
from agent.containerd.content import Ingest
from agent.containerd.snapshots import Snapshot, view_key
from agent.core.image_gc import Amount
from agent.core.oci_image import Descriptor
from agent.errors import FailedPrecondition
from tests.component.function_house import turns
from tests.component.image_house import BLOB_BYTES, LAYER, WORKER, ImageHouse, function

ONE = LAYER.bytes + BLOB_BYTES + 2  # an image of one layer: that, its blob, manifest and config
LONG_AGO_NS = 1


def filled(path, count, **settings):
    """A house with images 1 to `count` of one layer each, the lower the longer unused."""
    house = ImageHouse(path, **settings)
    for number in range(1, count + 1):
        house.store.add(f"h.io/x:{number}", f"sha256:{number}", (f"c{number}",), created_ns=number)
        house.store.view(f"c{number}")
    return house


def tags(house):
    return [name.rpartition(":")[2] for name in house.names()]


async def one_round(house):
    await house.collector._next_round()


@pytest.mark.parametrize(
    ("count", "left"),
    [
        (8, ["1", "2", "3", "4", "5", "6", "7", "8"]),  # at the high mark, not above it
        (9, ["5", "6", "7", "8", "9"]),
        (10, ["10", "6", "7", "8", "9"]),
    ],
)
async def test_above_the_high_mark_the_oldest_go_down_to_the_low_one(tmp_path, count, left):
    house = filled(
        tmp_path, count, max_bytes=10 * ONE, gc_high_percent=80, gc_low_percent=50, min_age_s=0
    )
    await one_round(house)
    assert tags(house) == sorted(left)
    assert (await house.used()).bytes == len(left) * ONE
    assert len(house.store.layers) == 2 * len(left)


async def test_files_count_as_bytes_do(tmp_path):
    files = LAYER.files + 3
    house = filled(tmp_path, 4, max_files=4 * files, gc_high_percent=75, gc_low_percent=50)
    await one_round(house)
    assert tags(house) == ["3", "4"]


async def test_a_use_keeps_an_image_longer_also_after_a_restart(tmp_path):
    marks = {"max_bytes": 3 * ONE, "gc_high_percent": 90, "gc_low_percent": 70, "min_age_s": 0}
    house = filled(tmp_path, 2, **marks)
    house.catalog.image_use.touch("sha256:1")
    await house.collector.save()
    house = filled(tmp_path, 3, **marks)
    await house.collector.load()
    await one_round(house)
    assert tags(house) == ["1", "3"]


async def test_starts_and_ends_of_instances_are_uses(tmp_path):
    house = ImageHouse(tmp_path)
    image = SimpleNamespace(digest="sha256:1")
    instance: Any = SimpleNamespace(version=SimpleNamespace(image=image))
    house.catalog.image_use.instance_ready(instance)
    first = house.catalog.image_use.last_ns["sha256:1"]
    house.catalog.image_use.instance_ended(instance, None)
    assert house.catalog.image_use.last_ns["sha256:1"] >= first > LONG_AGO_NS


async def test_last_uses_that_cannot_be_read_are_none(tmp_path):
    house = ImageHouse(tmp_path)
    for text in ("{", "[]", '{"sha256:1": "x"}', "null"):
        (tmp_path / "images.json").write_text(text)
        assert house.uses.load() == {}


async def test_last_uses_are_not_remembered_without_end(tmp_path):
    house = ImageHouse(tmp_path)
    use = house.catalog.image_use
    use.last_ns = {f"sha256:{n}": n for n in range(10_001)}
    use.touch("sha256:new")
    await house.collector.save()
    kept = json.loads((tmp_path / "images.json").read_text())
    assert len(kept) == 5000
    assert "sha256:new" in kept


async def test_what_is_young_stays_but_for_a_pull_without_room(tmp_path):
    house = filled(tmp_path, 2, max_bytes=2 * ONE, gc_high_percent=60, gc_low_percent=50)
    for digest in ("sha256:1", "sha256:2"):
        house.catalog.image_use.touch(digest)
    await one_round(house)
    assert tags(house) == ["1", "2"]
    assert await house.collector.make_room(Amount(1, 1))
    assert tags(house) == ["2"]


@pytest.mark.parametrize(
    ("ask", "left", "interrupted"),
    [
        (one_round, ["1", "2"], ["blob"]),
        (lambda house: house.collector.make_room(Amount(1, 1)), ["1", "2"], []),
        (lambda house: house.collector.collect(dry_run=False), [], []),
        (lambda house: house.collector.collect(dry_run=True), ["1", "2"], ["blob"]),
    ],
    ids=["by itself", "for a pull", "asked", "dry run"],
)
async def test_what_interrupted_pulls_have_fetched_goes_before_an_image_does(
    tmp_path, ask, left, interrupted
):
    """By itself it stays until its lease ends: who pulls again goes on with it."""
    house = filled(tmp_path, 2, max_bytes=5 * ONE, gc_high_percent=99, gc_low_percent=60)
    house.store.interrupted = ["blob"]
    house.store.blobs["blob"] = ONE
    await ask(house)
    assert tags(house) == left
    assert house.store.interrupted == interrupted


async def test_a_round_walks_over_all_functions_as_often_for_many_images_as_for_one(
    tmp_path, monkeypatch
):
    """Once for each image took the loop for a second with a thousand of both."""
    walks: Counter[int] = Counter()

    class Walked(dict[str, Any]):
        def values(self):
            walks[count] += 1
            return super().values()

    for count in (1, 20):
        house = filled(tmp_path, count, max_bytes=100 * ONE)
        monkeypatch.setattr(house.catalog, "_functions", Walked())
        await one_round(house)
    one, many = walks.values()
    assert one == many > 0


def in_use(house):
    house.catalog.put(function("f", "sha256:1", "c1"), latest=True)


def deploying(house):
    house.context = house.catalog.image_use.deploying("h.io/x:1")
    house.context.__enter__()


STAYS = {
    "a version": (in_use, {}),
    "a deploy or pull under way": (deploying, {}),
    "the keep-list": (lambda house: None, {"keep": ("h.io/x:1",)}),
}


@pytest.mark.parametrize("who", STAYS)
async def test_what_is_needed_never_goes(tmp_path, who):
    need, settings = STAYS[who]
    house = filled(tmp_path, 3, max_bytes=ONE, **settings)
    need(house)
    await one_round(house)
    await house.collector.make_room(Amount(1 << 40, 1))
    done = await house.collector.collect(dry_run=False)
    assert tags(house) == ["1"]
    assert {"c1", "view-c1"} <= set(house.store.layers)
    assert done.used == await house.used()


async def test_layers_that_an_instance_still_runs_on_stay_when_their_image_goes(tmp_path):
    house = filled(tmp_path, 1)
    house.run("f-1", "c1")
    done = await house.collector.collect(dry_run=False)
    assert [one.freed.bytes for one in done.removed] == [BLOB_BYTES + 2]
    assert done.freed.bytes == BLOB_BYTES + 2
    assert (tags(house), sorted(house.store.layers)) == ([], ["c1", "view-c1"])
    house.instances.clear()
    await house.collector.collect(dry_run=False)
    assert house.store.layers == {}


async def test_layers_of_an_image_whose_tag_moved_go_with_their_function(tmp_path):
    house = filled(tmp_path, 1)
    house.catalog.put(function("f", "sha256:1", "c1"), latest=True)
    house.store.add("h.io/x:1", "sha256:2", ("c2",))
    house.store.view("c2")
    await one_round(house)
    assert {"c1", "c2"} <= set(house.store.layers)
    house.catalog.remove("f")
    rounds = spawn("rounds", house.collector.run())
    house.catalog.image_use.released.set()
    async with asyncio.timeout(10):
        while "c1" in house.store.layers:  # noqa: ASYNC110 - the store tells nobody
            await asyncio.sleep(0)
    await stop(rounds)
    assert sorted(house.store.layers) == ["c2", "view-c2"]
    assert house.names() == ["h.io/x:1"]


async def test_layers_that_a_deploy_has_found_stay_when_its_tag_moves_meanwhile(tmp_path):
    house = filled(tmp_path, 1)
    with house.catalog.image_use.deploying("h.io/x:1"):
        house.catalog.image_use.hold("h.io/x:1", "c1")
        house.store.add("h.io/x:1", "sha256:2", ("c2",))
        await house.collector.collect(dry_run=False)
        assert {"c1", "view-c1", "c2"} <= set(house.store.layers)
    await house.collector.collect(dry_run=False)
    assert house.store.layers == {}


async def test_an_image_that_comes_into_use_meanwhile_is_left(tmp_path):
    house = filled(tmp_path, 2)
    house.store.gate = asyncio.Event()
    collection = spawn("collection", house.collector.collect(dry_run=False))
    await house.store.at_gate.wait()
    house.catalog.put(function("f", "sha256:2", "c2"), latest=True)
    house.store.gate.set()
    done = await collection
    assert tags(house) == ["2"]
    assert [one.name for one in done.removed] == ["h.io/x:1"]


async def test_a_dry_run_tells_what_a_collection_then_removes(tmp_path):
    house = filled(tmp_path, 3)
    house.store.add("h.io/y:1", "sha256:9", ("c1", "c9"), created_ns=9)
    house.store.view("c9")
    house.catalog.put(function("f", "sha256:3", "c3"), latest=True)
    before = dict(house.store.here), dict(house.store.layers), dict(house.store.blobs)
    told = await house.collector.collect(dry_run=True)
    assert (house.store.here, house.store.layers, house.store.blobs) == before
    done = await house.collector.collect(dry_run=False)
    assert told.removed == done.removed
    assert told.freed == done.freed
    assert [one.name for one in told.removed] == ["h.io/x:1", "h.io/x:2", "h.io/y:1"]
    assert told.used - told.freed == done.used


async def test_a_removal_gives_the_bytes_back_before_it_answers(tmp_path):
    house = filled(tmp_path, 2)
    await house.collector.remove("h.io/x:1")
    assert (await house.used()).bytes == ONE
    house.catalog.put(function("f", "sha256:2", "c2"), latest=True)
    with pytest.raises(FailedPrecondition, match="in use by f"):
        await house.collector.remove("h.io/x:2")


async def test_a_worker_that_has_handed_over_collects_nothing(tmp_path):
    house = filled(tmp_path, 2, max_bytes=ONE)
    house.collector.active = False
    assert not await house.collector.make_room(Amount(1, 1))
    assert tags(house) == ["1", "2"]


LEASES = [
    ("import-a", WORKER, 0, True, "this worker's"),
    ("import-b", WORKER, 100, False, "of a worker before the last boot, with this one's number"),
    ("import-c", 3, 0, True, "of another that lives"),
    ("import-d", 4, 0, False, "of a dead worker"),
    ("pull-e", 4, 60, True, "of a dead worker's pull, which may be taken up again"),
    ("pull-f", 4, 700, False, "of a dead worker's pull that nobody took up"),
    ("import-g", 0, 10_000, True, "of a release that named no worker: it ends by itself"),
]


@pytest.mark.parametrize(("name", "worker", "age_s", "stays", "whose"), LEASES)
async def test_leases_of_the_dead_are_swept(tmp_path, name, worker, age_s, stays, whose):
    house = ImageHouse(tmp_path)
    house.living = frozenset({3})
    house.lease(f"kindling-{name}", worker=worker, age_s=age_s)
    done = await house.collector.collect(dry_run=False)
    assert (f"kindling-{name}" in house.store.held) is stays, whose
    assert bool(house.store.collected) is not stays
    assert len(done.removed) == (0 if stays else 1)


async def test_blobs_that_nobody_goes_on_writing_are_swept(tmp_path):
    house = ImageHouse(tmp_path)
    now_ns = time.time_ns()
    house.store.unfinished = [
        Ingest("young", 5, now_ns - 60 * 10**9),
        Ingest("old", 7, now_ns - 7200 * 10**9),
    ]
    assert (await house.used()).bytes == 12
    done = await house.collector.collect(dry_run=False)
    assert [(one.kind, one.name, one.freed.bytes) for one in done.removed] == [
        ("unfinished blob", "old", 7)
    ]
    assert [one.ref for one in house.store.unfinished] == ["young"]


async def test_a_thousand_deploys_and_removals_stay_below_the_limit_and_lose_nothing(tmp_path):
    limit = Amount(8 * ONE, 1 << 30)
    house = ImageHouse(tmp_path, max_bytes=limit.bytes, gc_high_percent=90, gc_low_percent=60)
    chance = random.Random(7)
    deployed: dict[str, str] = {}
    for turn in range(1000):
        number = chance.randrange(40)
        name, layers = f"h.io/x:{number}", ("base", f"c{number}")
        if len(deployed) == 4:
            gone = chance.choice(sorted(deployed))
            house.catalog.remove(gone)
            del deployed[gone]
        with house.catalog.image_use.deploying(name):
            if name not in house.store.here:
                blobs = [Descriptor("l", f"blob-{number}", LAYER.bytes + BLOB_BYTES + 4)]
                await house.containerd.limit.admit(name, blobs)
                house.store.add(name, f"sha256:{number}", layers, created_ns=time.time_ns())
            house.store.view(layers[-1])
            house.catalog.put(function(f"f{number}", f"sha256:{number}", layers[-1]), latest=True)
        house.catalog.image_use.touch(f"sha256:{number}")
        deployed[f"f{number}"] = layers[-1]
        if turn % 10 == 0:
            await one_round(house)
        assert (await house.used()).bytes <= limit.bytes
        assert {*deployed.values(), "base"} <= set(house.store.layers)
    for gone in deployed:
        house.catalog.remove(gone)
    await house.collector.collect(dry_run=False)
    assert await house.used() == Amount()


async def test_a_name_that_a_deploy_has_moved_since_the_look_is_left(tmp_path):
    """Its tag is the same, what it stands for by now is in use."""
    house = filled(tmp_path, 2)
    house.store.gate = asyncio.Event()
    collection = spawn("collection", house.collector.collect(dry_run=False))
    await house.store.at_gate.wait()
    house.store.add("h.io/x:2", "sha256:9", ("c9",))
    house.catalog.put(function("f", "sha256:9", "c9"), latest=True)
    house.store.gate.set()
    done = await collection
    assert tags(house) == ["2"]
    assert [one.name for one in done.removed] == ["h.io/x:1"]
    assert "sha256:9" in house.store.blobs


async def test_a_removal_that_waits_for_a_collection_keeps_no_deploy_away(tmp_path):
    house = filled(tmp_path, 2)
    house.store.gate = asyncio.Event()
    collection = spawn("collection", house.collector.collect(dry_run=False))
    await house.store.at_gate.wait()
    removal = spawn("removal", house.collector.remove("h.io/x:2"))
    await turns()
    with house.catalog.image_use.deploying("h.io/x:2"):
        house.store.gate.set()
        await collection
        with pytest.raises(FailedPrecondition, match="being deployed"):
            await removal
    assert tags(house) == ["2"]


class Engine:
    """A lazy engine; `mounted` are the layers it has views of."""

    name = "soci"
    has_run = True

    def __init__(self, *mounted: str) -> None:
        self.mounted = set(mounted)
        self.hangs = False
        self.snapshots = SimpleNamespace(list=self._list, remove=self._remove)

    async def answers(self) -> bool:
        return not self.hangs

    async def _list(self, **_: Any) -> list[Snapshot]:
        views = [Snapshot(view_key(one), one, "view", {}) for one in sorted(self.mounted)]
        return [*views, *(Snapshot(one, "", "committed", {}) for one in self.mounted)]

    async def _remove(self, key: str) -> bool:
        self.mounted.remove(key.removeprefix("view-"))
        return True


async def test_what_an_engine_has_mounted_for_nobody_is_let_go(tmp_path):
    """Its tag has moved, or its name went while the engine was away."""
    house = filled(tmp_path, 2)
    engine = Engine("c1", "c2", "moved", "gone", "runs")
    house.containerd.lazy = (engine,)
    house.catalog.put(function("f", "sha256:7", "moved"), latest=True)
    house.run("f-1", "runs")
    engine.hangs = True
    await house.collector.collect(dry_run=True)
    engine.hangs = False
    told = await house.collector.collect(dry_run=True)
    assert ("layers", "soci view-gone") in [(one.kind, one.name) for one in told.removed]
    await one_round(house)
    assert engine.mounted == {"c1", "c2", "moved", "runs"}
    house.catalog.remove("f")
    house.instances.clear()
    await one_round(house)
    assert engine.mounted == {"c1", "c2"}
    await house.collector.collect(dry_run=False)
    assert engine.mounted == set()
