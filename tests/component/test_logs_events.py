"""Logs and events: what is kept, who follows, and what slow followers are told."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.aio.tasks import spawn, stop
from agent.errors import FailedPrecondition
from agent.telemetry.events import KEPT, Events, Subject
from agent.telemetry.logs import (
    FOLLOWER_BYTES,
    FOLLOWER_LINES,
    LINE_OVERHEAD,
    TRIMMED_SHARE,
    UNWORDED_BYTES,
    WIDEST,
    LogLine,
    Logs,
)
from agent.telemetry.metrics import AgentMetrics


def line(text, instance="a", stream="stdout"):
    return LogLine(1_700_000_000_123_456_789, stream, instance, 1, text)


def log_of(*texts, max_bytes=1 << 20):
    log = Logs(max_bytes, 1 << 30).of("f")
    for text in texts:
        log.append(line(text))
    return log


async def collect(follower, into):
    async for found in follower:
        into.append(found.text)


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


# -- logs


def kept_bytes(logs):
    """What all logs really hold, line by line."""
    return sum(LINE_OVERHEAD + len(found.text) for log in logs.budget.logs for found in log.tail(0))


async def test_the_logs_of_a_thousand_functions_together_outgrow_what_the_node_has_for_them():
    logs = Logs(1 << 20, 4 << 20)
    for n in range(1000):
        logs.of(f"f{n}").append(line("x" * 30_000))
    assert kept_bytes(logs) == logs.budget.held <= 4 << 20
    left = sum(len(log.tail(0)) for log in logs.budget.logs)
    assert logs.dropped()["logs_bytes",] == 1000 - left


async def test_of_all_logs_the_largest_gives_way():
    logs = Logs(1 << 20, 64 * 1000)
    small, large = logs.of("small"), logs.of("large")
    for n in range(10):
        small.append(line(str(n)))
    for _ in range(1000):
        large.append(line("x" * 100))
    assert [found.text for found in small.tail(0)] == [str(n) for n in range(10)]
    assert logs.budget.held == small.size_bytes + large.size_bytes == kept_bytes(logs)
    assert 64 * 1000 * (1 - 2 / TRIMMED_SHARE) < logs.budget.held <= 64 * 1000
    dropped = 1000 - len(large.tail(0))
    assert logs.dropped() == {("log_bytes",): 0, ("logs_bytes",): dropped}
    metrics = AgentMetrics()
    logs.report_to(metrics)
    text = (await metrics.render()).decode()
    assert f'kindling_log_lines_dropped_total{{limit="logs_bytes"}} {dropped}.0' in text
    assert f"kindling_log_bytes {logs.budget.held}.0" in text


steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 4), st.integers(0, 3000), st.booleans()),
        st.tuples(st.just("unworded"), st.integers(0, 4), st.just(0), st.just(True)),
        st.tuples(st.just("drop"), st.integers(0, 4), st.just(0), st.just(True)),
    ),
    max_size=200,
)


@settings(max_examples=200, deadline=None)
@given(total=st.integers(0, 20_000), each=st.integers(0, 8000), steps=steps)
def test_the_logs_together_never_exceed_their_budget(total, each, steps):
    logs, gone = Logs(each, total), []
    for verb, who, size, plain in steps:
        log = logs.of(f"f{who}")
        if verb == "drop":
            logs.drop(f"f{who}")
            gone.append(log)
            log.append(line("said after its end"))
        elif verb == "append":
            log.append(line(("x" if plain else "é") * size))
        else:
            log.append_unworded(1, "a", 1, lambda: ["y"], ())
        sizes = [log.size_bytes for log in logs.budget.logs]
        assert sum(sizes) == logs.budget.held <= total
        assert all(size <= max(each, LINE_OVERHEAD + WIDEST * 3000) for size in sizes)
        assert set(gone).isdisjoint(logs.budget.logs)


async def test_a_log_keeps_the_newest_lines_that_fit():
    log = log_of(*(f"{n:03}" for n in range(100)), max_bytes=10 * (3 + LINE_OVERHEAD))
    assert [found.text for found in log.tail(0)] == [f"{n:03}" for n in range(90, 100)]
    assert [found.text for found in log.tail(2)] == ["098", "099"]


async def test_empty_lines_are_bounded_too_and_one_long_line_is_kept():
    log = log_of(*([""] * 1000), max_bytes=10 * LINE_OVERHEAD)
    assert len(log.tail(0)) == 10
    log.append(line("x" * 100_000))
    assert [len(found.text) for found in log.tail(0)] == [100_000]


async def test_lines_of_the_platform_are_worded_when_somebody_reads_them():
    log, worded = log_of("before"), []

    def words(call, error):
        worded.append(call)
        return [f"{call} ended", f"{call} says {error}"] if error else [f"{call} ended"]

    log.append_unworded(5, "a", 2, words, ("r-1", "boom"))
    log.append(line("after"))
    assert worded == []
    assert [found.text for found in log.tail(0)] == [
        "before",
        "r-1 ended",
        "r-1 says boom",
        "after",
    ]
    assert [found.text for found in log.tail(2)] == ["r-1 says boom", "after"]
    assert [found.text for found in log.tail(9)] == [found.text for found in log.tail(0)]
    (found,) = [found for found in log.tail(0) if found.text == "r-1 ended"]
    assert (found.at_ns, found.stream, found.instance, found.version) == (5, "platform", "a", 2)
    assert not any("r-1" in text for text in log.of_instance("a", 9))
    follower = log.follow()
    log.append_unworded(6, "a", 2, words, ("r-2", ""))
    assert [found.text for found in follower.lines] == ["r-2 ended"]


async def test_the_last_text_of_an_instance_is_cut_to_size():
    log = log_of("old" * 50)
    log.append_unworded(1, "a", 1, lambda: ["two", "three"], ())
    log.append_unworded(1, "b", 1, lambda: ["not mine"], ())
    log.append(line("not mine either", "b"))
    log.append(line("four"))
    assert log.last_text("a", 100_000) == b"old" * 50 + b"\ntwo\nthree\nfour"
    assert log.last_text("a", 14) == b"two\nthree\nfour"
    assert log.last_text("a", 7) == b"ee\nfour"
    assert log.last_text("c", 7) == b""


async def test_lines_nobody_worded_are_bounded_too():
    log = Logs(10 * UNWORDED_BYTES, 1 << 30).of("f")
    for n in range(1000):
        log.append_unworded(n, "a", 1, lambda n: [str(n)], (n,))
    kept = [found.text for found in log.tail(0)]
    assert 8 <= len(kept) <= 10
    assert kept[-1] == "999"


async def test_quoted_lines_are_the_instances_own_and_stamped():
    log = log_of("mine")
    log.append(line("of another", instance="b"))
    log.append(line("the platform's", stream="platform"))
    log.append(line("mine too", stream="stderr"))
    assert log.of_instance("a", 5) == (
        "2023-11-14T22:13:20.123456789Z mine",
        "2023-11-14T22:13:20.123456789Z mine too",
    )
    assert log.of_instance("a", 1) == ("2023-11-14T22:13:20.123456789Z mine too",)


async def test_a_follower_gets_the_backlog_then_everything_and_ends_with_the_function():
    logs = Logs(1 << 20, 1 << 30)
    got: list[str] = []
    log = logs.of("f")
    log.append(line("before"))
    follower = log.follow(log.tail(0))
    reading = spawn("follow", collect(follower, got))
    await turns()
    log.append(line("after"))
    await turns()
    assert got == ["before", "after"]
    log.append(line("last"))
    logs.drop("f")
    await reading
    assert got == ["before", "after", "last"]
    log.append(line("of an instance that is still ending"))
    assert logs.of("f").tail(0) == []


async def test_a_slow_follower_loses_the_oldest_lines_and_knows_how_many():
    log = log_of()
    follower = log.follow()
    for n in range(FOLLOWER_LINES + 10):
        log.append(line(str(n)))
    follower.end()
    got: list[str] = []
    await collect(follower, got)
    assert follower.lost == 10
    assert got[0] == "10"
    assert len(got) == FOLLOWER_LINES


async def test_what_a_slow_follower_may_hold_is_bounded_in_bytes_too():
    log = log_of()
    follower = log.follow()
    text = "x" * (1 << 20)
    for n in range(20):
        log.append(line(text))
        assert len(follower.lines) == min(n + 1, FOLLOWER_BYTES // len(text) - 1)
    assert follower.lost == 20 - len(follower.lines)


async def test_a_long_backlog_is_not_lost_to_the_one_who_asked_for_it():
    count = FOLLOWER_LINES + 100
    log = log_of(*(str(n) for n in range(count)))
    follower = log.follow(log.tail(0))
    log.append(line("new"))
    follower.end()
    got: list[str] = []
    await collect(follower, got)
    assert follower.lost == 0
    assert (got[0], got[-1], len(got)) == ("0", "new", count + 1)


async def test_a_follower_that_left_gets_nothing_and_holds_nothing():
    log = log_of()
    follower = log.follow()
    log.unfollow(follower)
    log.unfollow(follower)
    log.append(line("later"))
    assert not follower.lines
    log.close()


async def test_a_follower_that_is_cancelled_while_waiting_can_be_left():
    log = log_of()
    got: list[str] = []
    follower = log.follow()
    reading = spawn("follow", collect(follower, got))
    await turns()
    await stop(reading)
    log.unfollow(follower)
    assert reading.cancelled()


# -- events


class Watcher:
    """Reads events in a task; `seen` are their types."""

    def __init__(self, events, token="", functions=frozenset()):
        self.seen = []
        self.tokens = []
        self.task = spawn("watch", self._read(events, token, functions))

    async def _read(self, events, token, functions):
        async for event in events.watch(token, functions):
            self.seen.append(event.type)
            self.tokens.append(event.token)


async def test_a_watcher_sees_what_happens_from_now_on_in_order():
    events = Events()
    events.add("Before")
    watcher = Watcher(events)
    await turns()
    for n in range(3):
        events.add(f"E{n}")
    await turns()
    events.add("E3")
    await turns()
    assert watcher.seen == ["E0", "E1", "E2", "E3"]
    await stop(watcher.task)


async def test_an_event_added_while_the_watcher_works_is_not_missed():
    events = Events()
    watching = events.watch("", frozenset())
    first = spawn("first", anext(watching))
    await turns()
    events.add("A")
    assert (await first).type == "A"
    events.add("B")  # nobody waits at this moment
    async with asyncio.timeout(5):
        assert (await anext(watching)).type == "B"
    await watching.aclose()


async def test_a_token_resumes_after_its_event_and_functions_filter():
    events = Events()
    first = Watcher(events)
    await turns()
    for name in ("f", "g", "f"):
        events.add("InstanceReady", Subject(name))
    await turns()
    await stop(first.task)
    again = Watcher(events, first.tokens[0], frozenset({"f"}))
    await turns()
    assert again.tokens == [first.tokens[2]]
    await stop(again.task)


@pytest.mark.parametrize("token", ["", "nonsense", "x-1", "{run}-x", "{run}-99999999999999999999"])
async def test_a_token_that_is_not_ours_is_refused(token):
    events = Events()
    events.add("A")
    watcher = Watcher(events, token.format(run=events._run))
    await turns()
    if not token:
        await stop(watcher.task)
        return
    with pytest.raises(FailedPrecondition):
        await watcher.task


async def test_a_watcher_that_is_too_slow_is_told_so():
    events = Events()
    watching = events.watch("", frozenset())
    first = spawn("first", anext(watching))
    await turns()
    events.add("A")
    await first
    for _ in range(KEPT + 1):
        events.add("B")
    with pytest.raises(FailedPrecondition, match="too slow"):
        await anext(watching)


async def test_a_token_whose_events_have_gone_is_refused():
    events = Events()
    token = f"{events._run}-1"
    for _ in range(KEPT + 2):
        events.add("A")
    watcher = Watcher(events, token)
    with pytest.raises(FailedPrecondition, match="no longer kept"):
        await watcher.task
