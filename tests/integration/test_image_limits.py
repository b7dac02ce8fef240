"""The image store's limit for real: rootless containerd, images that would fill it, a full disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.integration.probes import Facts, begun, probed
from tests.integration.test_containerd import NOTHING

DISK_MB = 160


SCENARIOS = {
    "limits": (
        *("bombs", "known_before", "second_try", "whole_archive", "side_by_side"),
        *("changing", "dead_worker"),
    ),
    "full": ("disk_full",),
}


@pytest.fixture(scope="module")
def facts(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Facts]]:
    limits, full = (partial(probed, "containerd_limit", *SCENARIOS[name]) for name in SCENARIOS)
    with begun(request, {"limits": limits, "full": partial(full, disk_mb=DISK_MB)}) as found:
        yield found


@pytest.fixture(scope="module")
def limits(facts: Callable[[str], Facts]) -> Facts:
    return facts("limits")


@pytest.fixture(scope="module")
def full(facts: Callable[[str], Facts]) -> Facts:
    found: Facts = facts("full")["disk_full"]
    return found


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("bytes", "the image store's limit is 100.0 MB (images.max_bytes)"),
        ("files", "the image store's limit is 5000 files (images.max_files)"),
    ],
)
def test_a_bomb_stops_at_the_limit_and_leaves_nothing(limits: Facts, kind: str, words: str) -> None:
    told = limits["bombs"][kind]
    assert told["packed"] < 10 << 20
    assert (told["class"], told["reason"]) == ("Overloaded", "disk")
    assert told["text"].startswith(f"import image docker.io/library/{kind}:1: stopped: ")
    assert words in told["text"]
    assert told["asked"] == 1
    assert told["back"]
    assert limits["bombs"]["left"] == NOTHING


def test_what_cannot_fit_is_refused_before_a_byte_is_stored(limits: Facts) -> None:
    told = limits["known_before"]
    assert told["reason"] == "disk"
    assert "8.0 MB more do not fit: the image store's limit is 4.0 MB" in told["text"]
    assert told["asked"] == 1
    assert told["left"] == NOTHING


def test_an_import_that_finds_no_room_is_tried_again_once_there_is(limits: Facts) -> None:
    told = limits["second_try"]
    assert told["class"] is None
    assert told["asked"] == 1
    assert told["names"] == ["docker.io/library/new:1"]
    assert told["left"] == NOTHING


def test_several_images_of_an_archive_are_taken_all_or_none(limits: Facts) -> None:
    told = limits["whole_archive"]
    assert (told["too_large"]["reason"], told["too_large"]["names"]) == ("disk", [])
    names = ["docker.io/library/one:1", "docker.io/library/two:1"]
    assert (told["fits"]["class"], told["fits"]["names"]) == (None, names)
    assert told["left"] == NOTHING


def test_a_layer_is_measured_while_its_files_come_and_go(limits: Facts) -> None:
    assert limits["changing"] == {"failures": [], "left": NOTHING}


def test_of_two_at_once_the_one_that_grows_is_stopped(limits: Facts) -> None:
    told = limits["side_by_side"]
    assert told["bomb"]["reason"] == "disk"
    assert told["good"] == "docker.io/library/good:1"
    assert told["left"] == NOTHING


def test_what_a_killed_import_stored_goes_as_soon_as_its_worker_is_dead(limits: Facts) -> None:
    told = limits["dead_worker"]
    assert told["said"] == "half\n"
    assert told["while_it_lives"] == []
    assert told["while_it_lives_left"] == {"blobs": 1, "ingests": 1, "leases": 1}
    assert told["when_it_is_dead"] == ["lease"]
    assert told["when_it_is_dead_left"] == {"blobs": 0, "ingests": 0, "leases": 0}


def test_an_image_larger_than_the_disk_leaves_nothing_on_it(full: Facts) -> None:
    assert full["unpack"]["reason"] == "disk"
    assert full["unpack"]["back"]
    assert full["left"] == NOTHING


@pytest.mark.parametrize("kind", ["admitted", "late"])
def test_on_a_full_disk_an_import_says_so(full: Facts, kind: str) -> None:
    told = full[kind]
    assert (told["class"], told["reason"]) == ("Overloaded", "disk")
    assert "disk full" in told["text"]
    assert told["back"]


def test_a_disk_that_was_full_takes_images_again(full: Facts) -> None:
    assert full["again"] == "docker.io/library/small:1"
    assert full["space_is_back"]
