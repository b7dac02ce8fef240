"""The containerd door for real: rootless containerd, crun, images from archives and a registry.

Each probe program runs once as user kindling inside rootlesskit with a containerd of its own; the
tests look at the facts it reports. After every probe no process and no cgroup may be left.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import misbehaving, oci, registry
from tests.inside import containerd_owners
from tests.inside.containerd_rig import Rig, rig

pytestmark = pytest.mark.integration

NOTHING = {"images": [], "snapshots": [], "leases": [], "blobs": 0}
AMD64 = {"os": "linux", "architecture": "amd64"}
ARM64 = {"os": "linux", "architecture": "arm64"}
HELM = "application/vnd.cncf.helm.config.v1+json"

Facts = dict[str, Any]


def facts_of(rig: Rig, program: str, *scenarios: str, **env: str) -> Facts:
    facts = rig.run(f"tests.inside.{program}", *scenarios, **env)
    assert rig.leftovers == []
    failed = {name: told["error"] for name, told in facts.items() if "error" in told}
    assert not failed, "\n".join(failed.values())
    return facts


@pytest.fixture(scope="module")
def place() -> Iterator[Rig]:
    with rig("containerd") as made:
        yield made
    assert not made.run_dir.exists()
    assert not made.data_dir.exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"*/kindling-test/{made.name}"))


@pytest.fixture(scope="module")
def anchor(place: Rig) -> Facts:
    return facts_of(place, "containerd_anchor")


@pytest.fixture(scope="module")
def images(place: Rig) -> Facts:
    return facts_of(place, "containerd_images")


@pytest.fixture(scope="module")
def faults(place: Rig) -> Facts:
    return facts_of(place, "containerd_faults")


@pytest.fixture(scope="module")
def pulls(place: Rig, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    busybox = oci.static_busybox()
    plain = oci.image([busybox, oci.layer({"second": b"2"})])
    arm = oci.image([busybox], arch="arm64")
    noise = [oci.layer({f"noise/{n}": os.urandom(4 << 20)}) for n in range(6)]
    stored = {
        "plain": plain,
        "arm": arm,
        "docker": oci.image([busybox], docker=True),
        "mixed": oci.index([(arm, ARM64), (plain, AMD64)], attestation=True),
        "armindex": oci.index([(arm, ARM64)], attestation=True),
        "artifact": artifact(plain),
        "big": oci.image([busybox, *noise]),
    }
    with registry.registry(tmp_path_factory.mktemp("registry")) as address:
        for name, image in stored.items():
            registry.push(address, name, "1", image)
        lost = json.loads(plain.blobs[plain.digest])["layers"][1]["digest"]
        registry.push(address, "lost", "1", plain, skip=lost)
        digest = f"plain@{plain.digest}"
        with misbehaving.misbehaving(plain) as silent:
            silent.faults["layer"] += [misbehaving.stall]
            facts = facts_of(
                place,
                "containerd_pull",
                PULL_REGISTRY=address,
                PULL_DIGEST=digest,
                PULL_SILENT=silent.address,
            )
            ranges = silent.ranges()
    return facts | {"address": address, "expected": plain.digest, "ranges": ranges}


@pytest.fixture(scope="module")
def owners(place: Rig, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    foreign = oci.image([containerd_owners.BASE, containerd_owners.FOREIGN])
    with registry.registry(tmp_path_factory.mktemp("owners")) as address:
        registry.push(address, "foreign", "1", foreign)
        return facts_of(place, "containerd_owners", PULL_REGISTRY=address)


FOREIGN_FILES = {
    "etc/passwd": [5, 6],
    "app/x.md": [65534, 65534],
    "app/y": [1000, 65534],
    "app/mine": [1000, 1000],
    "app/gone": [0, 0],
    "app/l": [0, 0],
}
FOREIGN_TOLD = "app/x.md belongs to id 1516583083 and 1 more, which no container has"
FOREIGN_REFUSED = "/app/x.md belongs to user 1516583083 and group 1516583083"


@pytest.mark.parametrize("how", ["imported", "pulled"])
def test_files_of_owners_no_node_has_run_with_the_overflow_owner(owners: Facts, how: str) -> None:
    told = owners[how]
    assert told["image"]["files"] == FOREIGN_FILES
    (warning,) = told["image"]["warnings"]
    assert warning.startswith(FOREIGN_TOLD)
    assert told["same"]
    assert told["left"] == NOTHING


def test_sparse_files_with_changed_owners_come_out_whole(owners: Facts) -> None:
    told = owners["sparse"]
    assert told["whole"]
    assert [told["files"][name][0] for name in ("holes", "zlast")] == [65534, 65534]
    assert "and 1 more" in told["warnings"][0]


def test_layers_with_changed_owners_are_shared_and_tell_every_image_on_them(owners: Facts) -> None:
    told = owners["imported"]
    assert told["good"]["warnings"] == []
    assert told["on_top"]["files"] == FOREIGN_FILES | {"app/upper": [7, 8]}
    assert told["on_top"]["warnings"] == told["image"]["warnings"]


def test_a_foreign_layer_that_is_damaged_or_not_what_its_config_says_is_refused(
    owners: Facts,
) -> None:
    told = owners["refused"]
    assert told["lying"]["class"] == "InvalidSpec"
    assert "unpacks to sha256:" in told["lying"]["text"]
    assert told["cut"]["class"] == "InvalidSpec"
    assert "a layer is damaged" in told["cut"]["text"]
    assert told["left"] == NOTHING


@pytest.mark.parametrize("how", ["refused", "pulled"])
def test_without_the_filter_the_refusal_names_file_id_and_way_out(owners: Facts, how: str) -> None:
    told = owners[how]["no_filter"]
    assert told["class"] in ("InvalidSpec", "ForeignOwner")
    assert FOREIGN_REFUSED in told["text"]
    assert "COPY --chown" in told["text"]
    assert owners[how]["left"] == NOTHING


def artifact(image: oci.OciImage) -> oci.OciImage:
    """The same blobs as something that is no container image."""
    manifest = json.loads(image.blobs[image.digest])
    manifest["config"]["mediaType"] = HELM
    raw = json.dumps(manifest).encode()
    blobs = {key: data for key, data in image.blobs.items() if key != image.digest}
    at = image.manifest | {"digest": oci.digest(raw), "size": len(raw)}
    return oci.OciImage(blobs | {oci.digest(raw): raw}, at)


def test_anchored_containers_share_the_shim_of_their_anchor(anchor: Facts) -> None:
    told = anchor["shared_shim"]
    assert len(told["shims_before"]) == 1
    assert told["shims_during"] == told["shims_before"]
    assert told["parents"] == told["shims_before"] * 2
    assert told["exits"] == [7, 7]
    assert set(told["listed"]) == {"anchor-a", "in-1", "in-2"}


def test_the_anchors_shim_ends_with_the_anchor(anchor: Facts) -> None:
    assert anchor["shared_shim"]["shims_after"] == []
    assert anchor["shared_shim"]["sandboxes_after"] == {}


def test_a_task_started_by_cruns_fifo_ends_as_any_other(anchor: Facts) -> None:
    told = anchor["by_fifo"]
    assert told["output"] == ["hello\n", "bad\n"]
    assert (told["exit"], told["deleted"], told["status"]) == (5, 5, "STOPPED")
    assert told["pid_gone"]


@pytest.mark.parametrize("kind", ["archive", "zipped", "directory", "index"])
def test_every_oci_form_gives_the_same_image(images: Facts, kind: str) -> None:
    told = images["formats"]
    assert told[kind]["digest"] == told["expected"]
    assert told[kind]["cmd"] == ["/bin/sh"]
    assert told[kind]["layers"] == 2
    assert told[kind]["top"] == ["app"]
    assert told[kind]["unpacked"] > told[kind]["compressed"] > 0
    assert told[f"{kind}_again"]


def test_dockers_formats_are_taken_too(images: Facts) -> None:
    told = images["formats"]
    assert told["docker"]["digest"] == told["docker_expected"]
    assert told["docker_save"]["chain_id"] == told["archive"]["chain_id"]
    assert told["docker_again"]
    assert told["docker_save_again"]


def test_an_archive_names_its_image_itself(images: Facts) -> None:
    assert images["formats"]["unnamed"] == "docker.io/library/probe:1"


def test_removed_images_leave_nothing(images: Facts) -> None:
    assert images["formats"]["left"] == NOTHING


def test_an_imported_image_outlives_garbage_collection(images: Facts) -> None:
    told = images["survives_collection"]
    assert told["snapshot_kept"]
    assert told["kept_without_view"]
    assert told["unpacked"] > 0
    assert told["left"] == NOTHING


def test_layers_are_let_go_though_their_tag_has_moved(images: Facts) -> None:
    told = images["unlabelled"]
    assert told["there"] == [False, True]
    assert told["left"] == NOTHING


def test_forty_layers_come_out_in_order(images: Facts) -> None:
    told = images["deep"]
    assert told["layers"] == 40
    assert told["order"] == ["38", "37", "36"]
    assert told["all_there"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "nowhere.tar: cannot be read: No such file or directory"),
        ("cut", "cut.tar: is not a whole tar archive"),
        ("cut_gz", "cut.tar.gz: is not a whole gzip file"),
        ("noise", "noise.tar: is not a whole tar archive"),
        ("empty", "empty.tar: is not a whole tar archive"),
        ("zstd", "zstd.tar: is not a whole zstd file"),
        ("no_layout", "x.tar: has neither oci-layout nor manifest.json"),
        ("no_blob", "no_blob.tar: has no file blobs/sha256/"),
        ("damaged", "is damaged: its bytes have another digest"),
        ("bad_json", "bad_json.tar: its manifest or config is not JSON"),
        ("arm_config", "arm_config.tar: has no linux/amd64 image (it offers linux/arm64)"),
        ("arm_index", "has no linux/amd64 image (it offers linux/arm64)"),
        ("wrong_diff_id", "liar.tar: its layers cannot be unpacked (wrong diff id"),
        ("no_name", "no_name.tar: does not say what the image is called"),
    ],
)
def test_a_bad_archive_is_refused_by_name(images: Facts, kind: str, words: str) -> None:
    told = images["refused"][kind]
    assert told["class"] == "InvalidSpec"
    assert words in told["text"]


def test_refused_archives_leave_nothing(images: Facts) -> None:
    assert images["refused"]["left"] == NOTHING


def test_an_import_cut_short_is_collected_when_its_lease_ends(images: Facts) -> None:
    told = images["cut_short"]
    assert told["said"] == "half\n"
    assert told["at_once"] == {"blobs": 1, "ingests": 1, "leases": 1}


def test_an_import_cut_short_does_not_hinder_the_next(images: Facts) -> None:
    told = images["again_after_a_cut"]
    assert told["said"] == "half\n"
    assert told["loaded"]["layers"] == 2


@pytest.mark.parametrize("kind", ["plain:1", "mixed:1", "plain"])
def test_pulls_take_the_amd64_manifest(pulls: Facts, kind: str) -> None:
    told = pulls["good"][kind]
    assert told["digest"] == pulls["expected"]
    assert told["name"].startswith(f"{pulls['address']}/{kind}")
    assert told["unpacked"]
    assert told["has_shell"]


def test_pulling_again_fetches_nothing(pulls: Facts) -> None:
    for kind in ("plain:1", "mixed:1", "docker:1", "plain"):
        told = pulls["good"][kind]
        assert told["same"]
        assert told["again"] == 0
        assert {"waiting", "saved", "Completed"} <= set(told["progress"])
    assert pulls["good"]["left"] == NOTHING


def test_a_name_follows_its_tag(pulls: Facts) -> None:
    assert pulls["moved_tag"]["same"]


@pytest.mark.parametrize(
    ("kind", "failure", "words"),
    [
        ("no_tag", "NotFound", "has no such image"),
        ("no_repository", "NotFound", "has no such image"),
        ("no_digest", "NotFound", "has no such image"),
        ("arm", "InvalidSpec", "is for linux/arm64; this node runs linux/amd64 only"),
        ("arm_index", "InvalidSpec", "has no linux/amd64 image (it offers linux/arm64)"),
        ("artifact", "InvalidSpec", HELM),
        ("lost_layer", "NotFound", "lost a part of it"),
        ("down", "RuntimeUnavailable", "does not answer"),
        ("silent", "RuntimeUnavailable", "did not answer in time"),
        ("malformed", "InvalidSpec", "is not an image reference"),
        ("too_large", "InvalidSpec", "more than the contract allows"),
    ],
)
def test_what_cannot_be_pulled_says_why(pulls: Facts, kind: str, failure: str, words: str) -> None:
    told = pulls["refused"][kind]
    assert told["class"] == failure
    assert words in told["text"]
    assert told["blobs"] == 0


def test_a_registry_that_falls_silent_in_a_layer_is_asked_for_the_rest(pulls: Facts) -> None:
    told = pulls["fallen_silent"]
    assert told["digest"] == pulls["expected"]
    assert told["left"] == NOTHING
    assert len(pulls["ranges"]) == 1
    assert not pulls["ranges"][0].startswith("bytes=0-")


def test_refused_pulls_leave_nothing(pulls: Facts) -> None:
    assert pulls["refused"]["left"] == NOTHING


def test_a_cancelled_pull_keeps_what_it_has_until_that_is_given_up(pulls: Facts) -> None:
    told = pulls["cancelled"]
    assert (told["cancelled"], told["kept"], told["given"]) == (True, 1, [True, False])
    assert told["left"] == NOTHING


def test_exits_and_kills_are_told_to_who_waits(faults: Facts) -> None:
    told = faults["ends"]
    assert told["exits"] == [3, 137]
    assert told["time_told"]
    assert told["kill_told"] == [True, False]


def test_tasks_survive_containerd_and_the_client_comes_back(faults: Facts) -> None:
    told = faults["containerd_killed"]
    assert told["alive"]
    assert told["listed"] == {"anchor-r": "CREATED", "survivor": "RUNNING"}
    assert told["exits"] == [4, 137]
    assert not told["shims_left"]


def test_errors_have_the_class_their_cause_deserves(faults: Facts) -> None:
    told = {
        name: text.split(":")[0] for name, text in faults["unreachable"].items() if name != "ended"
    }
    assert told["ready"] == told["list"] == "RuntimeUnavailable"
    assert told["missing"] == told["no_image"] == "NotFound"
    assert told["deadline"] == "RuntimeUnavailable"
    assert told["running"] == "FailedPrecondition"
    assert told["taken"] == "AlreadyExists"


def test_a_refused_create_leaves_nothing_and_the_shim_goes_on(faults: Facts) -> None:
    told = faults["failed_create"]
    for id in ("bad-own", "bad-in"):
        assert "executable file `/bin/nothing` not found" in told[id]
        assert told[f"{id}_task"].startswith("NotFound")
        assert told[f"{id}_left"] == []
    assert told["good"]


def test_a_lost_shim_is_told_by_its_anchors_exit_alone(faults: Facts) -> None:
    """What `agent/sandbox` builds on: anchored tasks outlive their shim, and nobody says so."""
    told = faults["shim_killed"]
    assert told["orphan_alive"]
    assert told["orphan_alive_after"]
    # The second while containerd has not yet seen for itself that the shim is gone.
    assert told["create"].startswith(("NotFound", "RuntimeUnavailable"))
    assert told["kill"].startswith("RuntimeUnavailable")
    assert told["anchor"].startswith("RuntimeUnavailable")
    assert told["swept"]
