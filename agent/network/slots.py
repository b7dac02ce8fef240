"""The pool of network slots: ready ones kept in stock, leased to instances, restored after use.

One background task, the keeper, makes and restores slots one at a time, so that each has one owner
at any moment; `core.slots` holds who that is. The work itself happens on the network thread
(`wiring`, `egress`); what speaks netlink is opened by the keeper, after the worker's start. A start
takes a ready slot without waiting; only an `egress` other than `all` costs it a quarter of a
millisecond. The next room up is `sandbox`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from agent.aio import tasks
from agent.aio.turns import TurnQueue
from agent.core.addresses import AddressPlan
from agent.core.slots import SlotCounts, Slots, SlotState
from agent.errors import Bug, Overloaded, RuntimeUnavailable
from agent.network import egress as rules
from agent.network import wire
from agent.network.egress import Egress, PacketFilter, Verb
from agent.network.slot import NetworkSlot
from agent.network.thread import NetworkThread
from agent.network.wire import Condition

if TYPE_CHECKING:
    from agent.network.wiring import Wiring

log = logging.getLogger(__name__)

# After a burst this many times `warm_slots` stay ready; the rest goes back to the kernel.
_KEEP_FACTOR = 4
# How long a start waits for a slot being made or restored (each takes 1 to 8 ms).
_WAIT_S = 5.0
# So many slots are restored in one go: about 10 ms of the thread, during which no socket is made.
_BATCH = 10
# A slot with sockets left is looked at again after this, then twice this, …: 1.3 s in all.
_BUSY_S = 0.02
_BUSY_TRIES = 6
# The kernel refused a slot: try again after this.
_RETRY_S = 1.0
_VERBS: tuple[Verb, ...] = ("add", "delete")


class NetworkSlots:
    """All network slots of one node. Lives on the loop; made by `network.Network`."""

    def __init__(
        self,
        thread: NetworkThread,
        plan: AddressPlan,
        open_wiring: Callable[[], Awaitable[Wiring]],
        packet_filter: PacketFilter,
        warm: int,
    ) -> None:
        self._thread = thread
        self._plan = plan
        # made by the keeper, who alone uses it
        self._open_wiring = open_wiring
        self._wiring: Wiring | None = None
        self._filter = packet_filter
        self._warm = warm
        # state of all slots
        self._slots = Slots(range(1, plan.capacity + 1))
        self._wires: dict[int, wire.Wire] = {}
        self._held: dict[int, NetworkSlot] = {}
        # slots that others hold, and those of them that are gone and to be cleared
        self._reserved: dict[int, Egress] = {}
        self._abandoned: dict[int, Egress] = {}
        # slots that were busy when they were looked at: how often, and when to look again
        self._tries: dict[int, int] = {}
        self._later: dict[int, float] = {}
        # the keeper and who waits for it
        self._waiting = TurnQueue()
        self._wake = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<NetworkSlots {self._slots!r} waiting={len(self._waiting)} warm={self._warm}>"

    def counts(self) -> SlotCounts:
        """Return how many slots stand where."""
        return self._slots.counts()

    async def adopt(self, number: int, pid: int, egress: Egress) -> NetworkSlot:
        """Take over the slot of a running process; NotFound if it is not there."""
        rules.members("add", self._plan.address(number), egress)
        found = await self._thread.call(
            wire.find, self._plan, self._thread.home, number, pid, discard=wire.drop
        )
        if number in self._reserved:
            del self._reserved[number]
        else:
            try:
                self._slots.adopt(number)
            except Bug:
                wire.drop(found)
                raise
        self._wires[number] = found
        return self._hold(number, egress)

    async def begin(self) -> None:
        """Put exactly the adopted rules in force and start the keeper."""
        restrictions = {slot.address: slot.egress for slot in self._held.values()}
        for number, egress in self._reserved.items():
            restrictions[self._plan.address(number)] = egress
        await self._thread.call(self._filter.run, rules.all_members(restrictions))
        kept = frozenset(self._wires) | self._reserved.keys() | self._abandoned.keys()
        self._keeper = tasks.spawn("network-slots", self._keep(kept))

    def reserve(self, number: int, egress: Egress) -> None:
        """Set a slot aside whose devices and rules stay as they are; before `begin`."""
        if self._slots.adoptable(number):
            self._slots.adopt(number)
            self._reserved[number] = egress

    def unreserve(self, number: int) -> None:
        """Have the keeper clear a slot that was set aside; unknown ones are ignored."""
        egress = self._reserved.pop(number, None)
        if egress is not None:
            self._abandoned[number] = egress
            self._wake.set()

    async def leave(self) -> None:
        """Stop the keeper and give ready slots back to the kernel; leased ones live on."""
        keeper, self._keeper = self._keeper, None
        await tasks.stop(keeper)
        while self._waiting:
            self._waiting.refuse(RuntimeUnavailable("the agent is stopping"))
        for number in self._slots.numbers(SlotState.READY):
            self._slots.discard(number)
            wire.drop(self._wires.pop(number))

    async def end(self) -> None:
        """Stop the keeper and close every namespace; those of running containers live on."""
        await self.leave()
        # A job of the stopped keeper may still be at work on a wire: close them only after it.
        await self._thread.call(len, ())
        for one in self._wires.values():
            wire.drop(one)
        self._wires.clear()

    async def lease(self, egress: Egress) -> NetworkSlot:
        """Return a slot with `egress` in force; Overloaded(slots) when all are taken."""
        rules.members("add", self._plan.bridge_address, egress)
        number = None if self._waiting else self._slots.lease()
        if number is None:
            number = await self._next()
        self._wake.set()
        slot = self._hold(number, egress)
        restriction = rules.members("add", slot.address, egress)
        if restriction:
            try:
                await self._thread.call(self._filter.run, restriction)
            except BaseException:
                self.release(slot)
                raise
        return slot

    def release(self, slot: NetworkSlot) -> None:
        """Take a slot back; raises Bug unless `slot` is the very lease that is out."""
        if self._held.get(slot.number) is not slot:
            raise Bug(f"network slot {slot.number} is not leased to whom releases it")
        # The lease stays in `_held` until the keeper has undone its rules.
        self._slots.release(slot.number)
        self._wake.set()

    def _hold(self, number: int, egress: Egress) -> NetworkSlot:
        fd = self._wires[number].fd
        path = f"/proc/{os.getpid()}/fd/{fd}"
        slot = NetworkSlot(number, self._plan.address(number), path, fd, egress)
        self._held[number] = slot
        return slot

    # -- waiting for the keeper

    async def _next(self) -> int:
        """Wait until there is a ready slot and lease it."""
        if self._keeper is None:
            raise RuntimeUnavailable("the network has not been opened")
        deadline = asyncio.get_running_loop().time() + _WAIT_S
        while True:
            counts = self._slots.counts()
            if counts.free + counts.making + counts.dirty + counts.ready <= len(self._waiting):
                raise self._full()
            self._wake.set()
            try:
                await self._waiting.turn(deadline)
            except TimeoutError as error:
                raise self._full() from error
            number = self._slots.lease()
            if number is not None:
                return number

    def _full(self) -> Overloaded:
        return Overloaded(f"all {len(self._slots)} network slots are taken", reason="slots")

    # -- the keeper

    async def _keep(self, adopted: frozenset[int]) -> None:
        while True:
            try:
                if self._wiring is None:
                    self._wiring = await self._begin_wiring(adopted)
                busy = await self._one_step(self._wiring)
            except Exception as error:
                log.exception("network slots: trying again in %g s", _RETRY_S)
                self._waiting.refuse(RuntimeUnavailable(f"network slot cannot be made: {error}"))
                await asyncio.sleep(_RETRY_S)
                continue
            if not busy:
                await self._rest()

    async def _rest(self) -> None:
        """Wait until somebody calls, or until a slot that was busy is to be looked at again."""
        again = min(self._later.values(), default=None)
        self._wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(again):
                await self._wake.wait()

    async def _begin_wiring(self, adopted: frozenset[int]) -> Wiring:
        """Open what makes slots and remove the devices that nobody adopted."""
        wiring = await self._open_wiring()
        removed = await self._thread.call(wiring.sweep, adopted)
        if removed:
            log.info("network: removed %d devices that nobody owned", removed)
        return wiring

    async def _one_step(self, wiring: Wiring) -> bool:
        """Do one piece of work; False when there is none."""
        counts = self._slots.counts()
        due = self._due() if counts.dirty else []
        if self._abandoned:
            await self._clear(wiring, *self._abandoned.popitem())
        elif due:
            await self._restore(wiring, due)
        elif counts.ready < self._warm or self._waiting:
            number = self._slots.make()
            if number is None:
                return False
            await self._make(wiring, number)
        elif counts.ready > max(self._warm * _KEEP_FACTOR, 1):
            number = self._slots.numbers(SlotState.READY)[0]
            self._slots.discard(number)
            wire.drop(self._wires.pop(number))
        else:
            return False
        self._waiting.tell(self._slots.counts().ready)
        return True

    async def _clear(self, wiring: Wiring, number: int, egress: Egress) -> None:
        """Undo what another worker made of a slot, and use its number."""
        try:
            await self._thread.call(self._clear_on_thread, wiring, number, egress)
        except BaseException:
            self._abandoned[number] = egress
            raise
        self._slots.release(number)
        self._slots.discard(number)

    def _clear_on_thread(self, wiring: Wiring, number: int, egress: Egress) -> None:
        wiring.cut([number])
        wiring.forget([number])
        # Adding first makes the deletion right even if the rules are not there.
        for verb in _VERBS:
            self._filter.run(rules.members(verb, self._plan.address(number), egress))

    async def _make(self, wiring: Wiring, number: int) -> None:
        try:
            made = await self._thread.call(wiring.make, number, discard=wire.drop)
        except BaseException:
            self._slots.discard(number)
            raise
        self._wires[number] = made
        self._slots.made(number)

    def _due(self) -> list[int]:
        """The next given-back slots to look at, longest waiting first."""
        now = asyncio.get_running_loop().time()
        dirty = self._slots.numbers(SlotState.DIRTY)
        return [number for number in dirty if self._later.get(number, now) <= now][:_BATCH]

    async def _restore(self, wiring: Wiring, numbers: list[int]) -> None:
        """Keep used slots that are as new, destroy the others, or look again later."""
        batch = [(self._wires[n], self._held[n], self._tries.get(n, 0)) for n in numbers]
        conditions = await self._thread.call(self._restore_on_thread, wiring, batch)
        for number, condition in conditions.items():
            if condition is Condition.BUSY:
                tries = self._tries.get(number, 0)
                self._tries[number] = tries + 1
                self._later[number] = asyncio.get_running_loop().time() + _BUSY_S * 2**tries
                continue
            self._tries.pop(number, None)
            self._later.pop(number, None)
            if condition is Condition.CLEAN:
                self._slots.clean(number)
            else:
                self._slots.discard(number)
                wire.drop(self._wires.pop(number))
            del self._held[number]

    def _restore_on_thread(
        self, wiring: Wiring, batch: list[tuple[wire.Wire, NetworkSlot, int]]
    ) -> dict[int, Condition]:
        conditions = {used.number: self._condition(wiring, used, tries) for used, _, tries in batch}
        wiring.cut([n for n, how in conditions.items() if how is Condition.SPOILED])
        quiet = [slot for _, slot, _ in batch if conditions[slot.number] is not Condition.BUSY]
        wiring.forget([slot.number for slot in quiet])
        # Only now: while anything lives in a slot its rules must hold. Adding first makes the
        # deletion right even if the lease failed before its own addition.
        for verb in _VERBS:
            members = (rules.members(verb, slot.address, slot.egress) for slot in quiet)
            self._filter.run("".join(members))
        return conditions

    def _condition(self, wiring: Wiring, used: wire.Wire, tries: int) -> Condition:
        """Restore one wire, on the thread, and say what is to become of it."""
        try:
            condition = wiring.restore(used)
        except OSError as error:
            log.warning("network slot %d cannot be restored: %s", used.number, error)
            condition = Condition.SPOILED
        if condition is Condition.BUSY and tries >= _BUSY_TRIES:
            log.warning("network slot %d is still in use and will be destroyed", used.number)
            condition = Condition.SPOILED
        return condition
