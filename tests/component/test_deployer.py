"""Deploys and removals over a real store: versions, concurrency, cancellation, faults."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agent.aio.tasks import spawn
from agent.containerd.unpack import LABEL
from agent.errors import (
    AlreadyExists,
    FailedPrecondition,
    FunctionFailed,
    NotFound,
    RuntimeUnavailable,
)
from agent.model.failure import FailureKind
from tests.component.deploy_house import Town, record
from tests.component.function_house import IMAGE, call, failing, turns, until

X = "docker.io/library/x:1"


@pytest.fixture
async def town(tmp_path):
    async with Town(tmp_path) as found:
        yield found


# -- versions


async def test_an_equal_spec_changes_nothing_and_another_becomes_the_next_version(town):
    first = await town.deploy()
    again = await town.deploy()
    assert (first.created, again.created) == (True, False)
    assert again.version.version == 1
    second = await town.deploy(timeout_s=9)
    assert second.version.version == 2
    assert town.deployed() == await town.stored() == {"f": (2, [1, 2])}
    with pytest.raises(AlreadyExists):
        await town.deploy(timeout_s=7, version=1)


async def test_the_same_tag_with_other_content_is_another_version(town):
    await town.deploy()
    town.images["docker.io/library/x:1"] = town.images["kindling.local/x:1"].__class__(
        **{**{f: getattr(IMAGE, f) for f in IMAGE.__slots__}, "digest": "sha256:9"}
    )
    assert (await town.deploy()).version.version == 1  # what is here is what the name stands for
    assert (await town.deploy(pull="always")).version.version == 2


async def test_what_comes_after_a_hand_over_is_not_stored_behind_the_next_workers_back(town):
    await town.deploy()
    town.fleet.mode.hand_over()
    with pytest.raises(FailedPrecondition, match="ask again"):
        await town.deploy(timeout_s=9)
    with pytest.raises(FailedPrecondition, match="ask again"):
        await town.deployer.remove("f", force=True)
    assert town.deployed() == await town.stored() == {"f": (1, [1])}


async def test_only_latest_keeps_a_minimum(town):
    await town.deploy(scaling={"min": 1}, wait=True)
    await town.deploy(scaling={"min": 1}, timeout_s=9, wait=True)
    versions = town.catalog.get("f").versions
    assert [versions[n].pool.policy.min for n in (1, 2)] == [0, 1]
    await town.deployer.remove("f", force=True)
    assert town.held() == {}


async def test_an_image_that_is_nowhere_is_not_found_and_nothing_is_left(town):
    with pytest.raises(NotFound):
        await town.deploy(image="nope:1")
    with pytest.raises(NotFound, match="image import"):
        await town.deploy(image="kindling.local/nope:1")
    assert town.deployed() == await town.stored() == {}
    assert not town.deployer._locks


async def test_a_registry_that_is_down_is_no_trouble_for_an_image_that_is_here(town):
    town.registry_down = True
    town.records[X] = record(IMAGE.digest)
    outcome = await town.deploy(pull="always")
    assert outcome.created
    (warning,) = outcome.warnings
    assert "the registry does not answer; x:1 is what was on this node already" in warning
    with pytest.raises(RuntimeUnavailable):
        await town.deploy(image="nope:1")


async def test_too_many_functions_are_refused(town):
    object.__setattr__(town.deployer, "_max_functions", 1)
    await town.deploy("f")
    with pytest.raises(FailedPrecondition, match="max_functions"):
        await town.deploy("g")
    await town.deploy("f", timeout_s=9)


# -- what is accepted and has no effect yet


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("health_check", {"health_check": {"path": "/health"}}),
        ("async_calls", {"async_calls": {"max_retries": 2}}),
        ("async_calls", {"async_calls": {"on_failure": "http://192.0.2.1/failed"}}),
    ],
)
async def test_a_field_that_is_not_used_yet_is_named_in_a_warning(town, field, given):
    for _ in range(2):  # an equal deploy, which changes nothing, is told as well
        (warning,) = (await town.deploy(image="kindling.local/x:1", **given)).warnings
        assert warning.startswith(field)
        assert warning.endswith("is accepted, but this version does not use it yet")
        assert "s3cret" not in warning


async def test_all_unused_fields_are_told_at_once(town):
    given = {"health_check": {"path": "/health"}, "async_calls": {"max_retries": 2}}
    outcome = await town.deploy(**given)
    assert [warning.split()[0] for warning in outcome.warnings] == [
        "health_check",
        "async_calls",
    ]


async def test_lazy_where_nothing_mounts_images_is_told_as_that(town):
    (warning,) = (await town.deploy(acceleration="lazy")).warnings
    assert warning.startswith("image docker.io/library/x:1: no engine for lazy images is installed")


@pytest.mark.parametrize("contract", ["fc", "fc2", "vercel"])
async def test_a_spec_that_is_silent_or_says_the_default_gets_no_warning(town, contract):
    silent = await town.deploy(contract=contract)
    assert silent.warnings == ()
    spelt = silent.version.spec.model_dump(mode="json", exclude={"name", "version"})
    assert (await town.deploy("g", **spelt)).warnings == ()
    used = {"acceleration": "eager", "scaling": {"max": 3, "idle_s": 9}, "labels": {"team": "a"}}
    assert (await town.deploy("h", contract=contract, **used)).warnings == ()


async def test_a_stop_signal_that_is_none_is_told(town):
    town.images["docker.io/library/x:1"] = replace(IMAGE, stop_signal="SIGNONE")
    (warning,) = (await town.deploy()).warnings
    assert "STOPSIGNAL 'SIGNONE' is no signal" in warning


async def test_files_of_owners_no_node_has_are_told(town):
    lower = {LABEL: '{"files": 2, "example": "app/x.md", "id": 1516583083}'}
    upper = {LABEL: '{"files": 1, "example": "y", "id": 70000}'}
    plain = {LABEL: '{"files": 0, "example": "", "id": 0}'}
    town.labels = [upper, plain, {}, lower]
    for _ in range(2):
        warnings = (await town.deploy()).warnings
        # The last one: that a tag deployed again was not asked for is told before.
        assert warnings[-1].startswith("app/x.md belongs to id 1516583083 and 2 more")


async def test_deploys_at_once_do_not_get_past_the_limit_of_functions(town):
    object.__setattr__(town.deployer, "_max_functions", 1)
    gate = town.points.hang["check"] = asyncio.Event()
    first = spawn("d", town.deploy("f"))
    await town.points.reached("check")
    with pytest.raises(FailedPrecondition, match="max_functions"):
        await town.deploy("g")
    gate.set()
    assert (await first).created
    assert town.deployed() == {"f": (1, [1])}
    with pytest.raises(NotFound):
        await town.deploy("f", image="nope:1")
    await town.deployer.remove("f", force=False)
    assert (await town.deploy("g")).created


# -- versions that cannot run


def broken(town, **fields):
    target = town.catalog.get("f").current
    target.version = replace(target.version, state="Failed", reason="it broke", **fields)
    target.scaling.version = target.version


async def test_an_equal_deploy_mends_a_version_whose_image_had_vanished(town):
    await town.deploy(scaling={"min": 1})
    broken(town)
    town.catalog.get("f").current.tick(town.fleet.now())
    assert await town.lease(town.catalog.find("f", "")) is FailureKind.IMAGE_UNAVAILABLE
    outcome = await town.deploy(scaling={"min": 1}, wait=True)
    assert (outcome.created, outcome.version.version) == (False, 1)
    assert (outcome.version.state, outcome.version.reason) == ("Ready", "")
    assert town.catalog.get("f").current.pool.ready_count == 1
    await town.deployer.remove("f", force=True)
    assert town.held() == {}


async def test_a_version_that_cannot_be_read_is_never_equal(town):
    await town.deploy()
    broken(town, image=None)
    outcome = await town.deploy()
    assert (outcome.created, outcome.version.version) == (True, 2)
    assert town.deployed() == {"f": (2, [1, 2])}


# -- together and interrupted


async def test_deploys_of_one_name_go_one_after_another_and_others_do_not_wait(town):
    gate = town.points.hang["check"] = asyncio.Event()
    same = [spawn("d", town.deploy(timeout_s=n)) for n in (1, 2, 2)]
    await town.points.reached("check")
    del town.points.hang["check"]
    other = await town.deploy("g")
    assert other.created
    assert not any(task.done() for task in same)
    gate.set()
    outcomes = await asyncio.gather(*same)
    assert [(o.version.version, o.created) for o in outcomes] == [(1, True), (2, True), (2, False)]
    assert town.deployed() == await town.stored()


async def test_a_lock_is_shared_by_all_who_wait_for_it_and_gone_afterwards(town):
    await town.deploy()
    gate = town.points.hang["remove"] = asyncio.Event()
    removal = spawn("r", town.deployer.remove("f", force=False))
    await town.points.reached("remove")
    waiting = spawn("d", town.deploy(timeout_s=5))
    await turns()
    gate.set()
    await removal
    later = spawn("d", town.deploy(timeout_s=6))
    outcomes = [(await waiting).version.version, (await later).version.version]
    assert outcomes == [1, 2]
    assert town.deployed() == await town.stored() == {"f": (2, [1, 2])}
    del waiting, later, removal
    await until(lambda: not town.deployer._locks)


@pytest.mark.parametrize("step", ["pull", "check"])
async def test_a_deploy_cancelled_before_it_is_stored_never_was(town, step):
    town.points.cancel.add(step)
    task = town.points.victim = spawn("d", town.deploy())
    await asyncio.wait({task})
    assert task.cancelled()
    assert town.deployed() == await town.stored() == {}
    assert (await town.deploy()).version.version == 1


async def test_a_deploy_cancelled_while_it_is_stored_is_whole(town):
    town.points.cancel.add("put")
    task = town.points.victim = spawn("d", town.deploy())
    await asyncio.wait({task})
    assert task.cancelled()
    assert town.deployed() == await town.stored() == {"f": (1, [1])}
    assert ("f", 1) not in town.builder.forgotten


@pytest.mark.parametrize("step", ["check", "put"])
async def test_a_deploy_that_fails_leaves_no_blueprint_behind(town, step):
    town.points.fail[step] = RuntimeUnavailable(step)
    with pytest.raises(RuntimeUnavailable):
        await town.deploy()
    assert town.deployed() == await town.stored() == {}
    assert town.builder.forgotten == [("f", 1)]
    assert not town.logs.budget.logs
    assert (await town.deploy(timeout_s=9)).version.version == 1


# -- waiting for instances


async def test_wait_returns_when_the_minimum_serves(town):
    await town.deploy(scaling={"min": 2}, wait=True)
    assert town.catalog.get("f").current.pool.ready_count == 2
    await town.deployer.remove("f", force=True)
    assert town.held() == {}


async def test_wait_starts_nothing_without_a_minimum(town):
    await town.deploy(wait=True)
    assert town.builder.built == []


async def test_wait_tells_why_an_instance_did_not_start(town):
    town.builder.fails = [failing()]
    with pytest.raises(FunctionFailed) as failed:
        await town.deploy(scaling={"min": 1}, wait=True)
    assert failed.value.kind is FailureKind.FILE_NOT_FOUND
    assert town.deployed() == {"f": (1, [1])}


async def test_wait_tells_at_once_that_the_node_has_no_room(tmp_path):
    async with Town(tmp_path, memory_mb=100) as town:
        with pytest.raises(FunctionFailed) as failed:
            await town.deploy(scaling={"min": 1}, wait=True)
        assert failed.value.kind is FailureKind.NO_CAPACITY


async def test_who_waits_for_a_version_that_is_replaced_meanwhile_is_answered(town):
    town.points.hang["create"] = gate = asyncio.Event()
    first = spawn("d", town.deploy(scaling={"min": 1}, wait=True))
    await town.points.reached("create")
    await town.deploy(timeout_s=9)
    outcome = await first
    assert outcome.version.version == 1
    gate.set()
    await town.deployer.remove("f", force=True)
    assert town.held() == {}


async def test_who_waits_for_a_version_that_is_removed_meanwhile_is_told(town):
    town.points.hang["create"] = asyncio.Event()
    first = spawn("d", town.deploy(scaling={"min": 1}, wait=True))
    await town.points.reached("create")
    await town.deployer.remove("f", force=False)
    with pytest.raises(FailedPrecondition):
        await first
    assert town.held() == {}


# -- removing


async def test_a_removal_drains_and_forgets_everything(town):
    await town.deploy()
    target = town.catalog.find("f", "")
    lease = await town.lease(target)
    removal = spawn("r", town.deployer.remove("f", force=False))
    await until(lambda: not town.deployed())
    with pytest.raises(NotFound):
        town.catalog.find("f", "")
    assert not removal.done()
    target.release(lease, call())
    await removal
    assert town.held() == {}
    assert await town.stored() == {}
    assert town.builder.forgotten == [("f", 1)]
    with pytest.raises(NotFound):
        await town.deployer.remove("f", force=False)


async def test_a_forced_removal_waits_for_nobody(town):
    await town.deploy()
    target = town.catalog.find("f", "")
    lease = await town.lease(target)
    await town.deployer.remove("f", force=True)
    assert ("kill", lease.endpoint.id) in town.did
    target.release(lease, call())
    assert town.held() == {}


@pytest.mark.parametrize("step", ["remove", "signal", "destroy"])
async def test_a_removal_whose_caller_goes_away_is_finished(town, step):
    await town.deploy(scaling={"min": 1}, wait=True)
    town.points.cancel.add(step)
    task = town.points.victim = spawn("r", town.deployer.remove("f", force=False))
    await asyncio.wait({task})
    assert task.cancelled()
    await until(lambda: not town.deployer._removals)
    assert town.deployed() == await town.stored() == {}
    assert town.held() == {}


async def test_a_removal_that_the_store_refuses_changes_nothing(town):
    await town.deploy(scaling={"min": 1}, wait=True)
    town.points.fail["remove"] = RuntimeUnavailable("disk full")
    with pytest.raises(RuntimeUnavailable):
        await town.deployer.remove("f", force=False)
    assert town.deployed() == await town.stored() == {"f": (1, [1])}
    target = town.catalog.find("f", "")
    target.release(await town.lease(target), call())
    await town.deployer.remove("f", force=False)
    assert town.held() == {}


async def test_a_removal_during_a_deploy_comes_after_it(town):
    gate = town.points.hang["check"] = asyncio.Event()
    deploying = spawn("d", town.deploy())
    await town.points.reached("check")
    removing = spawn("r", town.deployer.remove("f", force=False))
    await turns()
    gate.set()
    assert (await deploying).created
    await removing
    assert town.deployed() == await town.stored() == {}


async def test_what_a_pull_at_deploy_took_is_told_once_and_counted(town):
    town.blobs = {"sha256:0": 10}
    watching = town.events.watch("", frozenset())
    await town.deploy()
    await town.deploy("g")
    events = [await anext(watching), await anext(watching)]
    told = {event.subject.function: event.details for event in events}
    assert (told["f"]["bytes_pulled"], told["f"]["bytes_cached"]) == ("500", "10")
    assert float(told["f"]["pull_s"]) >= 0
    assert told["g"] == {}
    totals = town.catalog.image_use.totals
    assert (totals.pulls, totals.fetched_bytes, totals.cached_bytes) == (1, 500, 10)
    await watching.aclose()


async def test_what_a_deploy_pulled_that_failed_is_not_told_by_a_later_one(town):
    watching = town.events.watch("", frozenset())
    town.points.fail["check"] = FailedPrecondition("it cannot run")
    with pytest.raises(FailedPrecondition):
        await town.deploy()
    await town.deploy("g")
    assert (await anext(watching)).details == {}
    assert town.catalog.image_use.pulls == {}
    await watching.aclose()


async def test_what_two_deploys_waited_for_is_counted_once(town):
    town.images["docker.io/library/y:1"] = IMAGE  # of the same blobs
    town.points.hang["pull"] = gate = asyncio.Event()
    deploys = [spawn(f, town.deploy(f, image=image)) for f, image in (("f", "x:1"), ("g", "y:1"))]
    await until(lambda: len(town.pulls) == 2)
    gate.set()
    await asyncio.gather(*deploys)
    totals = town.catalog.image_use.totals
    assert (totals.pulls, totals.fetched_bytes) == (1, 510)


@pytest.mark.parametrize(
    ("before", "told"),
    [(False, [("forget", "f")]), (True, [("deploy_ended", "f")])],
    ids=["a first deploy", "a later one"],
)
async def test_what_a_failed_deploy_brought_for_a_registry_is_held_by_nobody(
    town, monkeypatch, before, told
):
    if before:
        await town.deploy()
    lazy, heard = town.deployer._stores.lazy, []
    monkeypatch.setattr(lazy, "forget", lambda name: heard.append(("forget", name)))
    monkeypatch.setattr(lazy, "deploy_ended", lambda name: heard.append(("deploy_ended", name)))
    with pytest.raises(NotFound):
        await town.deploy(image="nowhere:1", pull="always")
    assert heard == told


async def test_a_removal_leaves_alone_what_a_deploy_under_way_has_found(town, monkeypatch):
    """Two functions of one lazy image: who removes the first does not end its completing."""
    dropped = []

    async def drop(chain_id):
        dropped.append(chain_id)

    monkeypatch.setattr(town.deployer._stores.lazy, "drop", drop)
    await town.deploy()
    gate = town.points.hang["check"] = asyncio.Event()
    deploy = spawn("d", town.deploy("g"))
    await until(lambda: town.catalog.image_use.layers)
    await town.deployer.remove("f", force=False)
    gate.set()
    await deploy
    assert dropped == []
    await town.deployer.remove("g", force=False)
    assert dropped == [IMAGE.chain_id]
