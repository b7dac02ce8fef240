"""The pool's decisions by example, then everything at once by a stateful property test."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.core.pool import FIRST_BACKOFF_S, LAST_BACKOFF_S, STABLE_S, Member, Policy, Pool, Stage
from agent.errors import Bug, Overloaded


def pool(**policy: float) -> Pool[str, str]:
    return Pool(Policy(**policy))  # type: ignore[arg-type]


def serving(p: Pool[str, str], name: str, now: float = 0.0) -> Member[str]:
    member = p.added(name, now)
    p.ready(member, now)
    return member


def test_scale_from_zero_and_the_waiter_gets_the_first_place():
    p = pool()
    assert p.take(0) is None
    p.enqueue("w1", 0, 10)
    assert p.starts_wanted(0) == 1
    member = p.added("a", 0)
    assert p.starts_wanted(0) == 0
    assert p.ready(member, 1) == ["w1"]
    assert member.inflight == 1
    assert p.release(member, 2) is None
    assert p.take(3) is member


def test_the_member_used_last_is_used_first():
    p = pool()
    a, b = serving(p, "a"), serving(p, "b")
    assert p.take(0) is b
    assert p.take(0) is a
    p.release(b, 1)
    p.release(a, 2)
    assert p.take(3) is a


def test_a_member_is_filled_before_the_next_one_is_touched():
    p = pool(concurrency=2)
    a, b = serving(p, "a"), serving(p, "b")
    assert [p.take(0) for _ in range(5)] == [b, b, a, a, None]


def test_waiters_are_served_in_order_of_arrival():
    p = pool(concurrency=2)
    for n in range(5):
        p.enqueue(f"w{n}", 0, 10)
    a = p.added("a", 0)
    assert p.ready(a, 1) == ["w0", "w1"]
    assert [p.release(a, 2) for _ in range(3)] == ["w2", "w3", "w4"]
    assert a.inflight == 2


def test_a_full_queue_is_overloaded_and_a_closed_pool_too():
    p = pool(max_queue=1)
    p.enqueue("w1", 0, 10)
    with pytest.raises(Overloaded) as full:
        p.enqueue("w2", 0, 10)
    assert full.value.reason == "queue"
    assert full.value.retry_after_s > 0
    assert p.close() == ["w1"]
    with pytest.raises(Overloaded) as closed:
        p.enqueue("w3", 0, 10)
    assert closed.value.reason == "draining"


def test_a_closed_pool_gives_no_places_even_on_members_with_room():
    p = pool(concurrency=3)
    a = serving(p, "a")
    assert p.take(0) is a
    p.close()
    assert p.take(1) is None
    p.release(a, 2)
    assert p.take(3) is None
    assert p.starts_wanted(3) == 0


@pytest.mark.parametrize(
    ("waiting", "starting", "concurrency", "wanted"),
    [(1, 0, 1, 1), (5, 0, 1, 5), (5, 2, 1, 3), (5, 0, 4, 2), (4, 1, 4, 0), (500, 0, 1, 7)],
)
def test_starts_cover_the_waiters_that_starting_members_do_not(
    waiting, starting, concurrency, wanted
):
    p = pool(concurrency=concurrency, max=7)
    for n in range(starting):
        p.added(f"i{n}", 0)
    for n in range(waiting):
        p.enqueue(f"w{n}", 0, 10)
    assert p.starts_wanted(0) == wanted


def test_min_is_started_and_kept():
    p = pool(min=2, idle_s=10)
    assert p.starts_wanted(0) == 2
    a, b, c = (serving(p, name, now) for now, name in enumerate("abc"))
    assert p.idle(11.5) == [a]
    p.drain(a)
    assert p.idle(1000) == []
    assert {b, c} < set(p.members)


def test_idle_members_go_longest_idle_first_and_busy_ones_stay():
    p = pool(idle_s=10)
    a, b, c = (serving(p, name, now) for now, name in enumerate("abc"))
    assert p.take(3) is c
    assert p.idle(100) == [a, b]
    assert p.idle(10.5) == [a]


def test_idle_time_begins_anew_when_the_last_call_leaves():
    p = pool(idle_s=10, concurrency=2)
    a = serving(p, "a")
    assert p.take(8) is a
    assert p.take(8) is a
    p.release(a, 9)
    assert p.idle(100) == []
    p.release(a, 100)
    assert p.idle(109) == []
    assert p.idle(110) == [a]


def test_expired_waiters_leave_in_order_and_others_stay():
    p = pool()
    p.enqueue("late", 0, 5)
    p.enqueue("early", 0, 2)
    assert p.expired(1.9) == []
    assert p.expired(2) == ["early"]
    assert p.expired(9) == ["late"]
    assert p.waiting == 0


def test_an_abandoned_waiter_is_forgotten_once():
    p = pool()
    p.enqueue("w", 0, 10)
    assert p.abandon("w")
    assert not p.abandon("w")
    assert p.starts_wanted(0) == 0


def test_a_waiter_cannot_wait_twice():
    p = pool()
    p.enqueue("w", 0, 10)
    with pytest.raises(Bug):
        p.enqueue("w", 0, 10)


def test_a_second_release_is_a_bug():
    p = pool()
    a = serving(p, "a")
    p.take(0)
    p.release(a, 1)
    with pytest.raises(Bug):
        p.release(a, 1)


def test_a_failed_only_start_refuses_everybody():
    p = pool(max=1)
    for n in range(3):
        p.enqueue(f"w{n}", 0, 10)
    assert p.failed(p.added("a", 0), 1) == ["w0", "w1", "w2"]


def test_a_failed_start_refuses_nobody_while_another_member_serves():
    p = pool()
    serving(p, "a")
    p.take(0)
    p.enqueue("w", 0, 10)
    assert p.failed(p.added("b", 0), 1) == []
    assert p.waiting == 1


def test_a_function_that_always_crashes_is_not_started_for_ever():
    p, starts, now = pool(max=5), 0, 0.0
    for n in range(20):
        p.enqueue(f"w{n}", 0, 1000)
    refused: list[str] = []
    starting: list[Member[str]] = []
    for _ in range(200):
        for _ in range(p.starts_wanted(now)):
            starting.append(p.added(f"i{starts}", now))
            starts += 1
        if not starting:
            break
        refused += p.failed(starting.pop(0), now)
        now += 0.01
    assert sorted(refused) == sorted(f"w{n}" for n in range(20))
    assert p.waiting == 0
    assert starts <= 20


def test_after_failures_min_waits_for_a_growing_pause_but_a_call_is_one_more_try():
    p = pool(min=1)
    assert p.starts_wanted(0) == 1
    p.failed(p.added("a", 0), 0)
    assert p.starts_wanted(FIRST_BACKOFF_S / 2) == 0
    assert p.starts_wanted(FIRST_BACKOFF_S) == 1
    p.failed(p.added("b", 1), 1)
    assert p.starts_wanted(1 + FIRST_BACKOFF_S) == 0
    p.enqueue("w", 1, 10)
    assert p.starts_wanted(1) == 1
    for _ in range(50):
        p.failed(p.added("c", 2), 2)
    assert p.starts_wanted(2 + LAST_BACKOFF_S) == 1
    serving(p, "d")
    assert p.failures == 0


def test_the_last_member_dies_and_the_waiters_are_started_for():
    p = pool(max=1)
    a = serving(p, "a")
    p.take(0)
    p.enqueue("w", 0, 10)
    assert p.starts_wanted(0) == 0
    p.gone(a)
    assert p.starts_wanted(0) == 1
    assert p.release(a, 1) is None


def test_a_draining_member_serves_what_it_has_and_nothing_new():
    p = pool(concurrency=2)
    a = serving(p, "a")
    p.take(0)
    assert not p.drain(a)
    assert p.take(0) is None
    p.enqueue("w", 0, 10)
    assert p.release(a, 1) is None
    assert p.is_empty(a)
    assert p.waiting == 1


def test_a_release_without_a_call_is_a_bug():
    p = pool()
    a = serving(p, "a")
    with pytest.raises(Bug):
        p.release(a, 0)


def test_a_member_that_crashes_soon_after_its_start_is_one_more_failure():
    p = pool(min=1)
    for failures in (1, 2, 3):
        a = serving(p, f"a{failures}", 100)
        assert p.failures == 0
        p.crashed(a, 100 + STABLE_S / 2)
        assert p.failures == failures
        pause_s = FIRST_BACKOFF_S * 2 ** (failures - 1)
        assert p.starts_wanted(100 + STABLE_S / 2 + pause_s * 0.9) == 0
        assert p.starts_wanted(100 + STABLE_S / 2 + pause_s) == 1
    p.crashed(serving(p, "stable", 200), 200 + STABLE_S)
    assert p.starts_wanted(200 + STABLE_S) == 1
    drained = serving(p, "drained", 300)
    p.drain(drained)
    p.crashed(drained, 300)
    assert p.failures == 0


def test_an_adopted_member_counts_the_calls_of_the_worker_before():
    p = pool(concurrency=2)
    a, served = p.adopted("a", 0, taken=2)
    assert served == []
    assert p.take(0) is None
    p.release(a, 1)
    assert p.take(1) is a


def test_an_adopted_member_serves_who_waits():
    p = pool(concurrency=2)
    p.enqueue("w", 0, 10)
    assert p.adopted("a", 0, taken=1)[1] == ["w"]


def test_repr_tells_everything():
    p = pool()
    serving(p, "inst-1")
    p.take(0)
    p.enqueue("w", 0, 10)
    for word in ("ready=1", "starting=0", "inflight=1", "waiting=1", "inst-1"):
        assert word in repr(p)


class PoolMachine(RuleBasedStateMachine):
    """Drives a pool and keeps its own books of who was told what."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.names = 0
        self.p: Pool[str, int] = Pool(Policy(concurrency=2, min=1, max=4, max_queue=5, idle_s=3))
        self.waiting: list[int] = []
        self.ended: set[int] = set()
        self.calls: dict[Member[str], int] = {}

    def end(self, waiters: list[int]) -> None:
        for waiter in waiters:
            assert waiter not in self.ended
            self.ended.add(waiter)
            self.waiting.remove(waiter)

    def grant(self, member: Member[str], waiters: list[int]) -> None:
        assert waiters == self.waiting[: len(waiters)]  # first come, first served
        self.end(waiters)
        self.calls[member] = self.calls.get(member, 0) + len(waiters)

    def of(self, *stages: Stage) -> list[Member[str]]:
        return [m for m in self.p.members if m.stage in stages]

    @rule(seconds=st.floats(0, 3))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(patience=st.floats(0, 6))
    def call_comes(self, patience):
        member = self.p.take(self.now)
        if member is not None:
            self.calls[member] = self.calls.get(member, 0) + 1
            return
        self.names += 1
        full = len(self.waiting) >= 5
        try:
            self.p.enqueue(self.names, self.now, self.now + patience)
        except Overloaded:
            assert full or self.p.closed
            return
        assert not full
        assert not self.p.closed
        self.waiting.append(self.names)

    @rule()
    def starts(self):
        for _ in range(self.p.starts_wanted(self.now)):
            self.names += 1
            self.p.added(f"i{self.names}", self.now)
        assert len(self.of(Stage.STARTING, Stage.READY)) <= self.p.policy.max
        assert self.p.starts_wanted(self.now) == 0

    @precondition(lambda self: self.of(Stage.STARTING))
    @rule(data=st.data())
    def start_succeeds(self, data):
        member = data.draw(st.sampled_from(self.of(Stage.STARTING)))
        self.grant(member, self.p.ready(member, self.now))

    @precondition(lambda self: self.of(Stage.STARTING))
    @rule(data=st.data())
    def start_fails(self, data):
        member = data.draw(st.sampled_from(self.of(Stage.STARTING)))
        others_serve = bool(self.of(Stage.READY))
        refused = self.p.failed(member, self.now)
        assert not (others_serve and refused)
        assert refused == self.waiting[: len(refused)]
        self.end(refused)
        if not self.of(Stage.STARTING, Stage.READY):
            assert not self.waiting

    @precondition(lambda self: any(self.calls.values()))
    @rule(data=st.data())
    def call_ends(self, data):
        member = data.draw(st.sampled_from([m for m, n in self.calls.items() if n]))
        self.calls[member] -= 1
        waiter = self.p.release(member, self.now)
        if waiter is not None:
            self.grant(member, [waiter])

    @rule()
    def timer_fires(self):
        self.end(self.p.expired(self.now))
        before = len(self.of(Stage.READY))
        idle = self.p.idle(self.now)
        for member in idle:
            assert member.inflight == 0
            assert self.p.drain(member)
            self.p.gone(member)
        if idle and not self.p.closed:
            assert before - len(idle) >= self.p.policy.min
        self.starts()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def caller_goes_away(self, data):
        waiter = data.draw(st.sampled_from(self.waiting))
        assert self.p.abandon(waiter)
        self.end([waiter])
        assert not self.p.abandon(waiter)

    @precondition(lambda self: self.p.members)
    @rule(data=st.data())
    def member_drains(self, data):
        member = data.draw(st.sampled_from(self.p.members))
        assert self.p.drain(member) == (member.inflight == 0)

    @precondition(lambda self: self.p.members)
    @rule(data=st.data())
    def member_dies(self, data):
        member = data.draw(st.sampled_from(self.p.members))
        self.p.crashed(member, self.now)
        self.p.gone(member)
        assert self.p.release(member, self.now) is None

    @precondition(lambda self: self.names > 40)
    @rule()
    def function_is_removed(self):
        self.end(self.p.close())
        assert self.p.take(self.now) is None

    @invariant()
    def counts_are_what_recounting_gives(self):
        p, members = self.p, self.p.members
        assert p.starting == len(self.of(Stage.STARTING))
        assert p.ready_count == len(self.of(Stage.READY))
        assert p.inflight == sum(m.inflight for m in members)
        assert p.waiting == len(self.waiting)
        for member in members:
            assert member.inflight == self.calls.get(member, 0)

    @invariant()
    def nobody_is_above_concurrency(self):
        assert all(0 <= m.inflight <= self.p.policy.concurrency for m in self.p.members)

    @invariant()
    def nobody_waits_while_there_is_room(self):
        room = [m for m in self.of(Stage.READY) if m.inflight < self.p.policy.concurrency]
        assert not (room and self.waiting)

    @invariant()
    def exactly_those_with_room_can_be_taken(self):
        room = {m for m in self.of(Stage.READY) if m.inflight < self.p.policy.concurrency}
        assert set(self.p._stack) == (set() if self.p.closed else room)
        assert len(self.p._stack) == len(set(self.p._stack))


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
