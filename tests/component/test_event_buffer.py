"""The buffer of containerd's events: what is dropped is told, also when nothing comes after it."""

from __future__ import annotations

import asyncio

import pytest

from agent.containerd import events
from agent.containerd.channel import Channel
from agent.containerd.events import Gap, OutOfMemory, Subscription


@pytest.fixture
async def subscription(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "BUFFER", 3)
    door = Channel(tmp_path / "none", "n")
    yield Subscription(door)
    await door.close()


async def taken(subscription, count):
    async with asyncio.timeout(10):
        stream = aiter(subscription)
        return [await anext(stream) for _ in range(count)]


async def test_a_gap_follows_a_full_buffer_even_if_no_event_does(subscription):
    for n in range(10):
        subscription._put(OutOfMemory(str(n)))
    *kept, gap = await taken(subscription, 4)
    assert [event.id for event in kept] == ["0", "1", "2"]
    assert isinstance(gap, Gap)


async def test_after_a_gap_events_are_kept_again_and_the_next_loss_is_another_gap(subscription):
    for n in range(5):
        subscription._put(OutOfMemory(str(n)))
    await taken(subscription, 4)
    for n in range(5):
        subscription._put(OutOfMemory(str(n)))
    *kept, gap = await taken(subscription, 4)
    assert [event.id for event in kept] == ["0", "1", "2"]
    assert isinstance(gap, Gap)
