"""Who goes first, when to stop, and what never goes."""

from __future__ import annotations

import pytest

from agent.core import image_gc
from agent.core.image_gc import NO_LIMIT, Amount, FileSystem, StoredImage, limit, plan

EVERYTHING = Amount(NO_LIMIT, NO_LIMIT)
GB = 1 << 30

# Images a to d, oldest first, of one layer each; e shares d's layer and is newer.
SIZES = {"a": Amount(10, 1), "b": Amount(20, 5), "c": Amount(30, 1), "d": Amount(40, 1)} | {
    "e": Amount(1, 1)
}
PARTS = {"a": {"a"}, "b": {"b"}, "c": {"c"}, "d": {"d"}, "e": {"d", "e"}}


def images(held: str = "", **used: int) -> list[StoredImage]:
    order = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5} | used
    return [
        StoredImage(name, order[name], frozenset(parts), "in use by f" if name in held else "")
        for name, parts in PARTS.items()
    ]


@pytest.mark.parametrize(
    ("excess", "held", "pinned", "before", "goes"),
    [
        pytest.param(Amount(), "", "", NO_LIMIT, "", id="nothing too much"),
        pytest.param(Amount(-5, -5), "", "", NO_LIMIT, "", id="room left"),
        pytest.param(Amount(1, 0), "", "", NO_LIMIT, "a", id="the oldest first"),
        pytest.param(Amount(10, 0), "", "", NO_LIMIT, "a", id="no more than asked"),
        pytest.param(Amount(11, 0), "", "", NO_LIMIT, "ab", id="the next oldest"),
        pytest.param(Amount(0, 2), "", "", NO_LIMIT, "ab", id="files count as bytes do"),
        pytest.param(Amount(11, 0), "a", "", NO_LIMIT, "b", id="what is held stays"),
        pytest.param(Amount(1, 0), "ab", "", NO_LIMIT, "c", id="however old it is"),
        pytest.param(Amount(1, 0), "", "a", NO_LIMIT, "b", id="pinned parts give nothing"),
        pytest.param(Amount(61, 0), "", "", NO_LIMIT, "abcde", id="a shared layer goes last"),
        pytest.param(Amount(61, 0), "e", "", NO_LIMIT, "abc", id="or stays with who needs it"),
        pytest.param(EVERYTHING, "", "", NO_LIMIT, "abcde", id="all that can"),
        pytest.param(EVERYTHING, "abcde", "", NO_LIMIT, "", id="nothing can"),
        pytest.param(EVERYTHING, "", "", 3, "ab", id="what was used lately stays"),
    ],
)
def test_the_least_recently_used_go_until_it_is_enough(
    excess: Amount, held: str, pinned: str, before: int, goes: str
) -> None:
    found = plan(images(held), SIZES, set(pinned), excess, used_before_ns=before)
    assert "".join(one.name for one in found) == goes


def test_a_use_moves_an_image_to_the_end() -> None:
    found = plan(images(a=9), SIZES, (), Amount(25, 0))
    assert [one.name for one in found] == ["b", "c"]


def test_what_a_removal_gives_back_counts_shared_parts_once_and_last() -> None:
    found = plan(images(), SIZES, (), EVERYTHING)
    assert {one.name: one.freed.bytes for one in found} == {
        "a": 10, "b": 20, "c": 30, "d": 0, "e": 41,
    }  # fmt: skip


def test_of_two_names_for_one_image_the_second_gives_the_bytes_back() -> None:
    same = [StoredImage(name, 1, frozenset("a")) for name in ("x:2", "x:1")]
    found = plan(same, SIZES, (), EVERYTHING)
    assert [(one.name, one.freed.bytes) for one in found] == [("x:1", 0), ("x:2", 10)]


DISK = FileSystem(Amount(100 * GB, 1000), Amount(50 * GB, 500))


@pytest.mark.parametrize(
    ("configured", "disk", "used", "most"),
    [
        pytest.param(Amount(), DISK, Amount(40 * GB, 400), Amount(80 * GB, 800), id="a share"),
        pytest.param(Amount(GB, 7), DISK, Amount(), Amount(GB, 7), id="as configured"),
        pytest.param(Amount(), DISK, Amount(), Amount(49 * GB, 480), id="what is free, but a rest"),
        pytest.param(
            Amount(GB, 7), FileSystem(DISK.whole, Amount()), Amount(), Amount(), id="nothing free"
        ),
        pytest.param(
            Amount(GB, 0),
            FileSystem(Amount(100 * GB, 0), Amount(50 * GB, 0)),
            Amount(),
            Amount(GB, NO_LIMIT),
            id="inodes are not counted",
        ),
    ],
)
def test_how_much_the_store_may_hold(
    configured: Amount, disk: FileSystem, used: Amount, most: Amount
) -> None:
    assert limit(configured, disk, used) == most


def test_the_reserve_of_a_small_file_system_is_small() -> None:
    small = FileSystem(Amount(100 << 20, 100), Amount())
    assert image_gc.reserve(small) == Amount(2 << 20, 2)
