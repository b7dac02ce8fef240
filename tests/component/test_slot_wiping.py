"""Wiping of writable layers: it ends with the worker, in the middle of a slot too."""

from __future__ import annotations

import asyncio

from agent.storage import provisioned
from agent.storage.provisioned import ProvisionedSlots
from tests.component.function_house import until


def used_slot(directory, number):
    place = directory / "512" / str(number)
    for part in ("upper", "work"):
        (place / part / "deep").mkdir(parents=True)
        (place / part / "deep" / "file").write_text("left by a function")
    return place


async def test_a_used_slot_is_emptied_and_given_out_again(tmp_path):
    place = used_slot(tmp_path, 0)
    slots = ProvisionedSlots(tmp_path)
    await slots.open()
    slots.begin()
    await until(lambda: slots.counts()["slot512"].ready == 1)
    assert list((place / "upper").iterdir()) == []
    await slots.close()


async def test_the_end_does_not_wait_for_a_slot_that_takes_long(tmp_path, monkeypatch):
    monkeypatch.setattr(provisioned, "_SLICE_S", 0.0)  # never enough
    used_slot(tmp_path, 0)
    slots = ProvisionedSlots(tmp_path)
    await slots.open()
    slots.begin()
    await asyncio.sleep(0.05)  # sleeps: it is at work on the slot meanwhile
    assert slots.counts()["slot512"].dirty == 1
    async with asyncio.timeout(5):
        await slots.close()
    assert slots.counts()["slot512"].dirty == 1, "the next worker empties it"
