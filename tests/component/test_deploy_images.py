"""Images larger than their contract takes: refused at deploy, and nothing of them stays."""

from __future__ import annotations

import asyncio

import pytest

from agent.aio.tasks import spawn
from agent.core import oci_image
from agent.errors import InvalidSpec, NotFound
from agent.model.image_ref import parse_image_ref
from agent.model.limits import GB
from tests.component.deploy_house import Town, record
from tests.component.function_house import IMAGE

DIGEST = "sha256:" + "d" * 64
SCF = {"contract": "scf-web", "port": 9000}
X = "docker.io/library/x:1"


@pytest.fixture
async def town(tmp_path):
    async with Town(tmp_path) as found:
        yield found


@pytest.mark.parametrize("contract", [SCF, {"contract": "scf-job", "kind": "job", "port": None}])
async def test_what_is_too_large_to_pull_is_refused_before_a_byte_is_fetched(town, contract):
    town.compressed = [GB, 1]
    with pytest.raises(InvalidSpec) as refused:
        await town.deploy(**contract)
    [problem] = refused.value.problems
    assert problem.field == "image"
    for part in (X, f"{GB + 1} bytes", "1 GB", contract["contract"], "build it smaller"):
        assert part in problem.message
    assert (town.records, town.deployed(), await town.stored()) == ({}, {}, {})
    town.compressed = [GB]
    assert (await town.deploy(**contract)).created


@pytest.mark.parametrize("contract", ["fc", "fc2"])
async def test_what_is_too_large_unpacked_is_refused_and_taken_back(town, contract):
    town.unpacked = 10 * GB + 1
    with pytest.raises(InvalidSpec, match=r"10\.00 GB .* unpacked; .* at most 10 GB"):
        await town.deploy(contract=contract)
    assert (town.records, town.deployed(), await town.stored()) == ({}, {}, {})
    town.unpacked = 10 * GB
    assert (await town.deploy(contract=contract)).created
    assert X in town.records


async def test_a_pull_is_spared_when_even_compressed_it_is_more_than_may_be_unpacked(town):
    town.compressed = [10 * GB, 1]
    with pytest.raises(InvalidSpec, match="compressed, and more unpacked"):
        await town.deploy()
    assert town.records == {}


async def test_an_image_that_was_here_before_stays_though_a_contract_refuses_it(town):
    town.unpacked = 11 * GB
    town.records[X] = record(IMAGE.digest)
    with pytest.raises(InvalidSpec):
        await town.deploy()
    assert town.records[X].target.digest == IMAGE.digest


async def test_a_name_that_was_moved_in_vain_stands_for_what_it_did_before(town):
    town.unpacked = 11 * GB
    town.records[X] = record("sha256:old")
    with pytest.raises(InvalidSpec):
        await town.deploy()
    assert town.records[X].target.digest == "sha256:old"


async def test_an_image_in_use_by_another_function_is_not_taken_back(town):
    town.unpacked = 11 * GB
    await town.deploy("g", contract="vercel")
    with pytest.raises(InvalidSpec):
        await town.deploy()
    assert X in town.records


async def test_an_image_another_deploy_relies_on_is_not_taken_back(town):
    town.unpacked = 11 * GB
    gate = town.points.hang["check"] = asyncio.Event()
    other = spawn("d", town.deploy("g", contract="vercel"))
    await town.points.reached("check")
    del town.records[X]  # as if it were about to be pulled
    with pytest.raises(InvalidSpec):
        await town.deploy()
    assert X in town.records
    gate.set()
    assert (await other).created


async def test_a_deploy_cancelled_while_its_image_is_taken_back_still_takes_it_back(town):
    town.unpacked = 11 * GB
    town.points.cancel.add("delete image")
    task = town.points.victim = spawn("d", town.deploy())
    await asyncio.wait({task})
    assert task.cancelled()
    assert town.records == {}


async def test_imported_images_are_measured_too(town):
    town.unpacked = 11 * GB
    with pytest.raises(InvalidSpec, match=r"kindling\.local/x:1 takes 11\.00 GB"):
        await town.deploy(image="kindling.local/x:1")
    town.compressed = [2 * GB]
    with pytest.raises(InvalidSpec, match="compressed"):
        await town.deploy(image="kindling.local/x:1", **SCF)
    town.layer_type = oci_image.DOCKER_LAYER  # nobody knows what it would pack to
    assert (await town.deploy(image="kindling.local/x:1", **SCF)).created


async def test_what_is_on_the_node_is_measured_when_the_registry_is_down(town):
    town.registry_down, town.unpacked = True, 11 * GB
    town.records[X] = record(IMAGE.digest)
    with pytest.raises(InvalidSpec):
        await town.deploy()
    assert X in town.records


# -- pull: what is here, what the registry is asked for


@pytest.mark.parametrize("image", ["x:1", "docker.io/library/x:1", "index.docker.io/library/x:1"])
@pytest.mark.parametrize("pull", [{}, {"pull": "missing"}, {"pull": "never"}])
async def test_what_is_here_runs_under_its_name_and_no_registry_is_asked(town, image, pull):
    town.records[X] = record(IMAGE.digest)
    assert (await town.deploy(image=image, **pull)).created
    assert town.pulls == []


async def test_what_is_not_here_is_pulled_unless_it_never_may_be(town):
    with pytest.raises(NotFound, match="not on this node, and pull is never: run 'kindling image"):
        await town.deploy(pull="never")
    assert town.pulls == []
    assert (await town.deploy()).created
    assert town.pulls == [X]


async def test_always_asks_the_registry_for_what_is_here(town):
    town.records[X] = record("sha256:old")
    assert (await town.deploy(pull="always")).version.image.digest == IMAGE.digest
    assert town.pulls == [X]


@pytest.mark.parametrize("pull", ["missing", "always", "never"])
async def test_what_was_imported_under_the_nodes_own_name_has_no_registry(town, pull):
    outcome = await town.deploy(image="kindling.local/x:1", pull=pull)
    assert (outcome.created, outcome.warnings, town.pulls) == (True, (), [])
    with pytest.raises(NotFound, match="run 'kindling image import FILE'"):
        await town.deploy("g", image="kindling.local/gone:1", pull=pull)


async def test_what_is_here_in_part_is_pulled(town):
    town.records[X] = record(IMAGE.digest)
    town.unpacked = None
    await town.deploy()
    assert town.pulls == [X]


@pytest.mark.parametrize("ref", [f"x@{DIGEST}", f"x:2@{DIGEST}", f"elsewhere.example/y@{DIGEST}"])
async def test_a_digest_that_is_here_under_another_name_needs_no_registry(town, ref):
    full = parse_image_ref(ref).full
    town.records[X] = record(DIGEST)
    town.images[full] = IMAGE  # what the store says once it has that name
    assert (await town.deploy(image=ref)).created
    assert (town.pulls, town.records[full].target.digest) == ([], DIGEST)


async def test_a_digest_that_is_too_large_gets_no_second_name(town):
    town.unpacked = 11 * GB
    town.records[X] = record(DIGEST)
    town.images[f"docker.io/library/x@{DIGEST}"] = IMAGE
    with pytest.raises(InvalidSpec):
        await town.deploy(image=f"x@{DIGEST}")
    assert list(town.records) == [X]


async def test_how_a_deploy_pulls_makes_no_other_version(town):
    assert (await town.deploy()).created
    for pull in ("always", "missing", "never"):
        assert not (await town.deploy(pull=pull)).created


async def test_who_deploys_a_tag_again_is_told_that_its_registry_was_not_asked(town):
    assert (await town.deploy()).warnings == ()
    (warning,) = (await town.deploy(timeout_s=9)).warnings
    assert "its registry was not asked: deploy with pull=always" in warning
    assert (await town.deploy(pull="always")).warnings == ()


async def test_a_pull_that_makes_progress_may_take_hours(town):
    await town.deploy()
    assert town.allowed_s > 5 * 3600
