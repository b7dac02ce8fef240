"""Lazy images: which way a pull goes, what follows a mount, and what a new worker makes of them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from agent.aio.tasks import spawn, stop
from agent.config import LazySettings
from agent.containerd.access import Access
from agent.containerd.credentials import Credentials
from agent.containerd.keyring import Keyring
from agent.containerd.silence import Progress
from agent.core.oci_image import Descriptor, Manifest
from agent.deployments import completion, lazy_image
from agent.deployments.asking import Ahead
from agent.deployments.image_use import ImageUse
from agent.deployments.lazy_image import LazyImages
from agent.errors import FailedPrecondition, NotFound, RuntimeUnavailable
from agent.model.records import FunctionVersion, ImageFacts
from agent.model.spec import RegistrySpec
from agent.model.spec_parse import parse_spec
from agent.telemetry.events import Events
from tests.component.function_house import turns, until

MB = 1 << 20
FACTS = ImageFacts("r.example/x:1", "sha256:" + "1" * 64, "sha256:c", 1)
WHOLE = f"r.example/x@{FACTS.digest}"
SPEC = parse_spec({"name": "f", "image": FACTS.ref, "contract": "fc", "kind": "http"})
LOCAL = ImageFacts("kindling.local/x:1", "sha256:" + "2" * 64, "sha256:d", 1)


class FakeEngine:
    """An engine that is up unless told otherwise; `snapshots` are the chain ids it has mounted."""

    name = "soci"
    referrer_type = "type"
    has_run = True

    def __init__(self):
        self.runs = self.is_given = True
        self.asked = 0
        self.mounts = {FACTS.chain_id}
        self.removed = []
        self.layers = ("/top", "/base")
        self.users: list[Any] = []
        self.credentials = SimpleNamespace(
            use=self._use,
            refresh=self._refresh,
            take_up=self._take_up,
            release=lambda image: self.users.append((image, "released")),
            drop=lambda function: self.users.append((function, "dropped")),
            deploy_ended=lambda function: self.users.append((function, "ended")),
        )
        self.snapshots = SimpleNamespace(
            image_layers=self._layers, remove=self._remove, list=self._list, exists=self._exists
        )

    def _use(self, function, host, image, registry):
        self.users.append((function, host))

    async def _take_up(self):
        self.users.append("taken up")

    async def _refresh(self, function):
        self.users.append("written")

    @asynccontextmanager
    async def in_use(self):
        yield

    def annotated(self, manifest):
        return False

    async def up(self, deadline):
        if not self.runs:
            raise RuntimeUnavailable("soci does not answer")

    async def given(self, chain_id):
        return self.is_given

    async def answers(self):
        self.asked += 1
        return self.runs

    async def _layers(self, chain_id, *, deadline):
        return self.layers

    async def _remove(self, key):
        self.removed.append(key)

    async def _exists(self, key, *, deadline):
        return key in self.mounts

    async def _list(self, *, deadline):
        return [SimpleNamespace(key=key) for key in self.mounts]


class Yard:
    """LazyImages over a fake containerd; `pulls` are (name, snapshotter)."""

    def __init__(self, **settings: Any) -> None:
        self.engine = FakeEngine()
        self.pulls: list[tuple[str, str]] = []
        self.faults: list[Exception] = []
        self.steps: list[Progress] = []
        self.completed: list[str] = []
        self.unmounted: list[str] = []
        self.deleted: list[str] = []
        self.unlabelled: list[tuple[str, str]] = []
        self.sizes = (90 * MB, 10 * MB)
        self.gate: asyncio.Event | None = None
        self.slow_delete: asyncio.Event | None = None
        self.events = Events()
        self.keyring = Keyring()
        door: Any = SimpleNamespace(
            lazy=[self.engine],
            transfer=SimpleNamespace(pull=self._pull, has_referrer=self._has_referrer),
            keyring=self.keyring,
            snapshots=SimpleNamespace(image_layers=self.engine._layers, exists=self._exists),
            images=SimpleNamespace(
                get=self._get,
                delete=self._delete,
                unlabel=self._unlabel,
                list=self._list,
                inspect=self._inspect,
            ),
        )
        prepared: Any = SimpleNamespace(
            completed=self.completed.append, unmounted=self.unmounted.append
        )
        settings = {"complete_after_s": 0.0, **settings}
        self.use = ImageUse()
        self.shown: list[Credentials | None] = []
        self.named: set[str] = set()
        self.unpacked: set[str] = set()
        self.lazy = LazyImages(LazySettings(**settings), door, prepared, self.events, self.use)

    async def _exists(self, chain_id):
        return chain_id in self.unpacked

    async def _has_referrer(self, name, digest, kind, *, deadline, access):
        return True

    async def _pull(self, name, *, deadline, access, accept=None, choose=None, progress=None):
        layers = tuple(Descriptor("m", f"sha256:{n}", size) for n, size in enumerate(self.sizes))
        manifest = Manifest("m", Descriptor("c", "sha256:0", 0), layers[::-1])
        found: Any = SimpleNamespace(manifest=manifest, target=Descriptor("m", FACTS.digest, 1))
        chosen = await choose(found) if choose is not None else ""
        self.pulls.append((name, chosen))
        self.shown.append(await access.credentials("r.example"))
        for step in self.steps if progress is not None else ():
            progress(step)
        if self.gate is not None:
            await self.gate.wait()
        if self.faults:
            raise self.faults.pop(0)
        return SimpleNamespace(
            chain_id=FACTS.chain_id,
            digest=FACTS.digest,
            manifest=manifest,
            facts=lambda: FACTS,
            name=name,
        )

    async def _get(self, name):
        if name not in self.named:
            raise NotFound(name)

    async def _list(self):
        return [SimpleNamespace(name=name) for name in self.named]

    async def _inspect(self, name):
        layers = tuple(Descriptor("m", f"sha256:{n}", size) for n, size in enumerate(self.sizes))
        manifest = Manifest("m", Descriptor("c", "sha256:0", 0), layers[::-1])
        return SimpleNamespace(
            chain_id=FACTS.chain_id,
            digest=FACTS.digest,
            manifest=manifest,
            facts=lambda: FACTS,
            name=name,
        )

    async def _delete(self, name):
        self.deleted.append(name)
        if self.slow_delete is not None:
            await self.slow_delete.wait()

    async def _unlabel(self, chain_id, snapshotter):
        self.unlabelled.append((chain_id, snapshotter))

    async def pull(self, asked="lazy"):
        deadline = asyncio.get_running_loop().time() + 5
        spec = SPEC.model_copy(update={"acceleration": asked})
        return await self.lazy.pull(
            spec, FACTS.ref, deadline=deadline, accept=lambda _: None, access=Access()
        )


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """Every image has an index; `mounted` is what the kernel has mounted."""
    mounted = ["/top", "/base"]

    monkeypatch.setattr(lazy_image, "FIRST_PAUSE_S", 0.001)
    parsed = [SimpleNamespace(point=point) for point in mounted]
    fake = SimpleNamespace(parse=lambda _: [one for one in parsed if one.point in mounted])
    monkeypatch.setattr(lazy_image, "mountinfo", SimpleNamespace(text=str, parse=fake.parse))
    return mounted


@pytest.fixture
async def yard():
    made = Yard()
    yield made
    await made.lazy.close()


def version(facts):
    return FunctionVersion("f", 1, SPEC, facts, "Ready", 0)


async def done(yard):
    await until(lambda: yard.completed == [FACTS.chain_id])


@pytest.mark.parametrize(
    ("asked", "sizes", "by"),
    [
        ("auto", (90 * MB, 10 * MB), "soci"),
        ("auto", (50 * MB, 10 * MB), ""),
        ("lazy", (1, 1), "soci"),
        ("eager", (90 * MB, 10 * MB), ""),
    ],
)
async def test_which_way_an_image_takes(yard, asked, sizes, by):
    yard.sizes = sizes
    _, warnings = await yard.pull(asked)
    assert (yard.pulls[0], warnings) == ((FACTS.ref, by), ())


async def test_a_mounted_image_is_completed_by_its_digest(yard):
    await yard.pull()
    await done(yard)
    assert yard.pulls == [(FACTS.ref, "soci"), (WHOLE, "")]
    assert yard.deleted == [WHOLE]


async def test_completing_goes_on_until_it_succeeds(yard):
    yard.lazy.complete(FACTS, SPEC)
    yard.faults = [RuntimeUnavailable("away"), RuntimeUnavailable("still away")]
    await done(yard)
    assert yard.pulls == [(WHOLE, "")] * 3


async def test_why_an_image_is_not_complete_is_told_once_and_new_credentials_are_tried_at_once(
    yard, monkeypatch
):
    monkeypatch.setattr(lazy_image, "FIRST_PAUSE_S", 60.0)
    refused = FailedPrecondition("the registry r.example refuses these credentials (401)")
    yard.faults = [refused, refused]
    seen: list[str] = []
    watching = spawn("watch", _all(yard.events, seen))
    await asyncio.sleep(0)
    yard.lazy.complete(FACTS, SPEC)
    for pulls in (1, 2, 3):
        await until(lambda: len(yard.pulls) == pulls)  # noqa: B023 - waited for at once
        yard.keyring.set("r.example", Credentials("me", str(pulls)))
    await done(yard)
    await until(lambda: seen[-1:] == ["ImageCompleted"])
    await stop(watching)
    assert seen == ["ImageNotComplete", "ImageCompleted"]


async def _all(events, seen):
    async for event in events.watch("", frozenset()):
        seen.append(event.type)


async def test_an_engine_has_the_credentials_before_it_mounts(yard):
    await yard.pull()
    assert yard.engine.users == [("f", "r.example"), "written"]


async def test_two_deploys_of_an_image_complete_it_once(yard):
    await asyncio.gather(yard.pull(), yard.pull())
    await done(yard)
    assert yard.pulls.count((WHOLE, "")) == 1


async def test_what_nothing_runs_on_any_more_is_not_completed(yard):
    gate = asyncio.Event()
    yard.gate = gate
    yard.lazy.complete(FACTS, SPEC)
    await until(lambda: yard.pulls == [(WHOLE, "")])
    await yard.lazy.drop(FACTS.chain_id)
    await yard.lazy.drop("sha256:unknown")
    assert (yard.completed, yard.lazy.progress()) == ([], [])
    assert yard.deleted == [WHOLE]  # whatever of it was recorded already


async def test_progress_is_told(yard, monkeypatch):
    monkeypatch.setattr(completion, "TOLD_S", 0.0)
    yard.steps = [
        Progress("downloading", "a", 5 * MB, 60 * MB),
        Progress("downloading", "b", 10 * MB, 40 * MB),
        Progress("extracting", "a", 1, 1),
        Progress("waiting", "c", 0, 0),
    ]
    watch = spawn("watch", _first(yard.events, "ImageCompleting", 2))
    await asyncio.sleep(0)
    yard.faults = [RuntimeUnavailable("stop here")]
    yard.lazy.complete(FACTS, SPEC)
    seen = await watch
    assert seen[1].details == {"done_bytes": str(15 * MB), "total_bytes": str(100 * MB)}
    assert "15 of 100 MB" in seen[1].message


async def _first(events, type, count):
    found = []
    async with asyncio.timeout(5):
        async for event in events.watch("", frozenset()):
            if event.type == type:
                found.append(event)
            if len(found) == count:
                return found
    raise AssertionError("the watch ended")


@pytest.mark.parametrize("there", [[], ["/base"]])
async def test_what_is_hardly_mounted_is_unpacked_and_told(yard, surroundings, there):
    surroundings[:] = there
    _, warnings = await yard.pull()
    assert [by for _, by in yard.pulls] == ["soci", ""]
    assert "fetched and unpacked whole" in warnings[0]
    assert yard.unlabelled == [(FACTS.chain_id, "soci")]
    assert yard.lazy.progress() == []


async def test_an_engine_that_does_not_come_up_is_told(yard):
    yard.engine.runs = False
    _, warnings = await yard.pull()
    assert yard.pulls == [(FACTS.ref, "")]
    assert "fetched and unpacked whole" in warnings[0]


async def test_a_pull_by_an_engine_that_fails_is_done_again_without(yard):
    yard.faults = [RuntimeUnavailable("soci has ended")]
    _, warnings = await yard.pull()
    assert [by for _, by in yard.pulls] == ["soci", ""]
    assert "soci has ended" in warnings[0]


async def test_a_mount_is_let_go_when_it_is_complete_and_nothing_runs_on_it(yard):
    await yard.lazy.let_go(())
    assert yard.engine.removed == []
    yard.lazy.complete(FACTS, SPEC)
    await done(yard)
    await yard.lazy.let_go({FACTS.chain_id})
    assert yard.engine.removed == []
    await yard.lazy.let_go(())
    await yard.lazy.let_go(())
    assert yard.engine.removed == [f"view-{FACTS.chain_id}"]


@pytest.mark.parametrize(
    ("given", "in_use", "cut_off"),
    [
        (False, {FACTS.chain_id}, {FACTS.chain_id}),
        (True, {FACTS.chain_id}, set()),
        (False, set(), set()),
    ],
)
async def test_a_mount_that_is_given_nothing_more_is_cut_off_once_its_image_is_here(
    yard, given, in_use, cut_off
):
    yard.engine.is_given = given
    yard.gate = asyncio.Event()
    yard.lazy.complete(FACTS, SPEC)
    assert await yard.lazy.cut_off(in_use) == set()  # there is nothing to give way to
    yard.gate.set()
    await done(yard)
    assert await yard.lazy.cut_off(in_use) == cut_off


async def test_a_new_worker_completes_what_was_mounted(yard):
    assert await yard.lazy.resume((), [version(FACTS), version(LOCAL)]) == {FACTS.chain_id}
    await done(yard)


async def test_a_new_worker_lets_go_what_was_complete(yard):
    assert await yard.lazy.resume({FACTS.chain_id}, [version(FACTS)]) == set()
    await yard.lazy.let_go(())
    assert yard.engine.removed == [f"view-{FACTS.chain_id}"]


async def test_what_an_engine_had_that_does_not_answer_is_fetched(yard):
    yard.engine.runs = False
    assert await yard.lazy.resume((), [version(FACTS), version(LOCAL)]) == {FACTS.chain_id}
    await done(yard)


async def test_an_engine_that_has_never_run_is_not_started_for_nothing(yard):
    yard.engine.has_run = yard.engine.runs = False
    assert await yard.lazy.resume((), [version(FACTS)]) == set()


async def test_closing_leaves_the_rest_to_the_next_worker():
    yard = Yard(complete_after_s=60.0)
    yard.lazy.complete(FACTS, SPEC)
    assert yard.lazy.progress() == ["r.example/x:1: 0 of 0 MB"]
    with suppress(asyncio.CancelledError):
        await yard.lazy.close()
    assert yard.pulls == []


# -- asked for ahead of any deploy


AHEAD = Ahead(FACTS.ref, RegistrySpec(username="me", password="secret"))


async def ahead(yard):
    deadline = asyncio.get_running_loop().time() + 5

    def ignore(_):
        pass

    return await yard.lazy.pull_ahead(AHEAD, deadline=deadline, accept=ignore, progress=ignore)


async def test_an_image_asked_for_ahead_is_mounted_and_completed(yard):
    _, warnings = await ahead(yard)
    await done(yard)
    assert (warnings, yard.pulls) == ((), [(FACTS.ref, "soci"), (WHOLE, "")])
    assert yard.engine.users[:2] == [(f"image {FACTS.ref}", "r.example"), "written"]


async def test_credentials_of_an_image_ahead_go_with_its_mount(yard):
    await ahead(yard)
    assert (f"image {FACTS.ref}", "ended") in yard.engine.users
    await done(yard)
    assert yard.shown[-1] == Credentials("me", "secret")
    assert (f"image {FACTS.ref}", "dropped") not in yard.engine.users
    await yard.lazy.let_go(())
    assert (f"image {FACTS.ref}", "dropped") in yard.engine.users


async def test_credentials_of_an_image_ahead_that_was_not_mounted_are_not_kept(yard, surroundings):
    surroundings[:] = []
    _, warnings = await ahead(yard)
    assert "fetched and unpacked whole" in warnings[0]
    assert (f"image {FACTS.ref}", "dropped") in yard.engine.users
    assert repr(yard.keyring) == "Keyring(0 hosts, 0 functions)"


async def test_an_image_ahead_whose_name_is_gone_is_completed_no_more(yard):
    yard.gate = gate = asyncio.Event()
    yard.lazy.complete(FACTS, AHEAD)
    await until(lambda: yard.pulls == [(WHOLE, "")])
    await yard.lazy.gone(FACTS.ref, FACTS.chain_id)
    gate.set()
    assert (yard.completed, yard.lazy.progress()) == ([], [])
    assert (f"image {FACTS.ref}", "dropped") in yard.engine.users


async def test_what_cannot_be_completed_ahead_is_left_to_who_deploys_it(yard, monkeypatch):
    monkeypatch.setattr(lazy_image, "AHEAD_TRIES", 2)
    yard.faults = [RuntimeUnavailable("away")] * 5
    yard.lazy.complete(FACTS, AHEAD)
    await until(lambda: not yard.lazy.progress())
    assert (len(yard.pulls), yard.completed) == (2, [])


async def test_a_deploy_goes_on_with_what_was_mounted_ahead(yard, monkeypatch):
    monkeypatch.setattr(lazy_image, "AHEAD_TRIES", 2)
    yard.gate = asyncio.Event()
    yard.faults = [RuntimeUnavailable("away")] * 5  # more than are tried ahead
    yard.lazy.complete(FACTS, AHEAD)
    await until(lambda: len(yard.pulls) == 1)
    image: Any = await yard._inspect(FACTS.ref)
    assert await yard.lazy.take_up(SPEC, image)
    assert ("f", "r.example") in yard.engine.users
    yard.gate.set()
    await done(yard)
    assert len(yard.pulls) == 6


@pytest.mark.parametrize(
    "change", ["eager", "ended", "not mounted", "hardly mounted"], ids=lambda each: each
)
async def test_what_is_not_mounted_or_wanted_whole_is_not_taken_up(yard, surroundings, change):
    if change == "ended":
        yard.engine.runs = False
    elif change == "not mounted":
        yard.engine.mounts = set()
    elif change == "hardly mounted":
        surroundings[:] = ["/base"]
    asked = "eager" if change == "eager" else "auto"
    spec = SPEC.model_copy(update={"acceleration": asked})
    assert not await yard.lazy.take_up(spec, await yard._inspect(FACTS.ref))
    assert yard.lazy.progress() == []


async def test_a_new_worker_completes_what_was_mounted_ahead(yard):
    yard.named = {FACTS.ref}
    assert await yard.lazy.resume((), []) == set()
    await done(yard)
    assert (f"image {FACTS.ref}", "r.example") in yard.engine.users


async def test_a_new_worker_lets_go_what_was_complete_ahead(yard):
    yard.named = {FACTS.ref}
    await yard.lazy.resume({FACTS.chain_id}, [])
    await yard.lazy.let_go(())
    assert yard.engine.removed == [f"view-{FACTS.chain_id}"]


# -- several at once


def of(function):
    return SPEC.model_copy(update={"name": function})


async def test_who_needs_an_image_whose_completing_is_just_ended_has_it_completed(yard):
    yard.gate = asyncio.Event()
    yard.lazy.complete(FACTS, of("f"))
    await until(lambda: yard.pulls == [(WHOLE, "")])
    yard.slow_delete = asyncio.Event()
    dropping = spawn("drop", yard.lazy.drop(FACTS.chain_id))
    await turns()  # it still forgets its name
    yard.gate.set()
    yard.lazy.complete(FACTS, of("g"))
    yard.slow_delete.set()
    await dropping
    await done(yard)


async def test_completing_goes_on_with_the_credentials_of_who_still_needs_it(yard):
    first, second = Credentials("f", "1"), Credentials("g", "2")
    for name, each in (("f", first), ("g", second)):
        registry = SPEC.registry.model_copy(
            update={"username": each.username, "password": each.password}
        )
        yard.keyring.keep(name, "r.example", registry)
    yard.faults = [RuntimeUnavailable("away")]
    yard.gate = asyncio.Event()
    yard.lazy.complete(FACTS, of("g"))
    yard.lazy.complete(FACTS, of("f"))
    await until(lambda: yard.shown == [first])
    yard.keyring.drop("f")
    yard.lazy.forget("f")
    yard.gate.set()
    await done(yard)
    assert yard.shown == [first, second]


async def test_completing_shows_newer_credentials_than_its_deploy_brought(yard):
    brought = SPEC.registry.model_copy(update={"username": "f", "password": "old"})
    yard.faults = [RuntimeUnavailable("401")]
    yard.gate = asyncio.Event()
    yard.lazy.complete(FACTS, SPEC.model_copy(update={"registry": brought}))
    await until(lambda: yard.shown == [Credentials("f", "old")])
    yard.lazy.deploy_ended("f")
    yard.keyring.set("r.example", Credentials("f", "new"))
    yard.gate.set()
    await done(yard)
    assert yard.shown[1:] == [Credentials("f", "new")]


async def test_a_name_that_a_deploy_relies_on_meanwhile_is_not_forgotten_after_completing(yard):
    yard.gate = asyncio.Event()
    yard.lazy.complete(FACTS, SPEC)
    await until(lambda: yard.pulls == [(WHOLE, "")])
    with yard.use.deploying(WHOLE):
        pass
    yard.gate.set()
    await done(yard)
    assert yard.deleted == []


async def test_an_image_that_was_imported_meanwhile_is_complete_without_its_registry(yard):
    yard.faults = [RuntimeUnavailable("away")]
    yard.gate = asyncio.Event()
    yard.lazy.complete(FACTS, SPEC)
    await until(lambda: yard.pulls == [(WHOLE, "")])
    yard.unpacked.add(FACTS.chain_id)
    yard.gate.set()
    await done(yard)
    assert yard.pulls == [(WHOLE, "")]


async def test_an_unexpected_error_does_not_end_completing(yard):
    yard.faults = [KeyError("layer")]
    yard.lazy.complete(FACTS, SPEC)
    await done(yard)


async def test_a_mount_that_another_function_runs_on_stays_though_a_deploy_finds_it_poor(
    yard, surroundings
):
    yard.gate = asyncio.Event()
    yard.lazy.complete(FACTS, of("f"))
    await until(lambda: yard.pulls == [(WHOLE, "")])
    yard.gate = None
    surroundings[:] = []
    await yard.pull()
    assert (yard.unmounted, yard.engine.removed) == ([], [])


async def test_a_mount_is_let_go_later_when_its_engine_does_not_answer(yard):
    assert await yard.lazy.resume({FACTS.chain_id}, [version(FACTS)]) == set()
    yard.engine.runs = False
    await yard.lazy.let_go(())
    assert yard.engine.removed == []
    yard.engine.runs = True
    await yard.lazy.let_go(())
    await yard.lazy.let_go(())
    assert yard.engine.removed == [f"view-{FACTS.chain_id}"]


async def test_an_engine_that_hangs_is_asked_once_however_many_mounts_wait_for_it(yard):
    many = [replace(FACTS, chain_id=f"sha256:{n}") for n in range(20)]
    yard.engine.mounts = {one.chain_id for one in many}
    await yard.lazy.resume({one.chain_id for one in many}, [version(one) for one in many])
    yard.engine.runs, yard.engine.asked = False, 0
    await yard.lazy.let_go(())
    assert yard.engine.asked == 1
