"""Who gives way when a start finds no room."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.eviction import Idle, Need, choose_victims

MB = 1 << 20


def idle(who, since, memory_mb=128, disk_mb=512, *, frozen=False):
    return Idle(who, float(since), memory_mb * MB, disk_mb, frozen)


def test_the_longest_idle_gives_its_slot():
    found = [idle("b", 2), idle("a", 1), idle("c", 3)]
    assert choose_victims(Need("slots", 0, 512), found) == ["a"]


def test_a_slot_of_another_size_is_of_no_use():
    found = [idle("a", 1, disk_mb=10240), idle("b", 2)]
    assert choose_victims(Need("slots", 0, 512), found) == ["b"]
    assert choose_victims(Need("slots", 0, 10240), found) == ["a"]
    assert choose_victims(Need("slots", 0, 1024), found) == []


def test_as_many_go_as_make_up_the_memory():
    found = [idle("a", 1), idle("b", 2), idle("c", 3)]
    assert choose_victims(Need("memory", 129 * MB, 512), found) == ["a", "b"]


def test_frozen_ones_go_before_those_idle_for_longer():
    found = [idle("a", 1), idle("c", 3, frozen=True), idle("b", 2, frozen=True)]
    assert choose_victims(Need("memory", 300 * MB, 512), found) == ["b", "c", "a"]
    assert choose_victims(Need("slots", 0, 512), found) == ["b"]


def test_nobody_goes_in_vain():
    assert choose_victims(Need("memory", 385 * MB, 512), [idle("a", 1), idle("b", 2)]) == []
    assert choose_victims(Need("slots", 0, 512), []) == []


def test_anyone_gives_a_place_on_the_node():
    found = [idle("a", 1, disk_mb=10240), idle("b", 2)]
    assert choose_victims(Need("instances", -500 * MB, 512), found) == ["a"]


@pytest.mark.parametrize("reason", ["draining", "queue", "queue_timeout"])
def test_what_is_no_lack_of_room_ends_nobody(reason):
    assert choose_victims(Need(reason, 1, 512), [idle("a", 1)]) == []


@given(
    st.lists(st.tuples(st.integers(0, 50), st.sampled_from([128, 256, 1024])), max_size=12),
    st.integers(1, 4096),
)
def test_memory_is_made_up_and_the_last_one_was_needed(ones, short_mb):
    found = [idle(n, since, memory_mb) for n, (since, memory_mb) in enumerate(ones)]
    sizes = [memory_mb for _, memory_mb in ones]
    chosen = choose_victims(Need("memory", short_mb * MB, 512), found)
    if not chosen:
        assert sum(sizes) < short_mb
        return
    assert sum(sizes[n] for n in chosen) >= short_mb > sum(sizes[n] for n in chosen[:-1])
    stays = [ones[n][0] for n in range(len(ones)) if n not in chosen]
    assert all(ones[n][0] <= since for n in chosen for since in stays)
