"""Whose CPU time it was, how often the figures are read, and what a call is told at its end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.metering import SAMPLE_S, InstanceMeter

MS = 1_000_000  # ns


class Figures:
    def __init__(self):
        self.ns = 0
        self.peak = 0
        self.reads = 0

    def cpu_ns(self):
        self.reads += 1
        return self.ns

    def peak_bytes(self):
        return self.peak


class Call:
    cpu_ns = 0.0
    joins = 0
    alone = False
    peak_bytes = 0

    @property
    def told(self):
        return self.cpu_ns / MS, self.alone


class Metering:
    """A meter whose clock stands far beyond the last sample at every step."""

    def __init__(self):
        self.figures = Figures()
        self.meter = InstanceMeter(self.figures)
        self.now = 0.0

    def begin(self, at_ms, call=None):
        call = call or Call()
        self.at(at_ms)
        self.meter.begin(call, self.now)
        return call

    def end(self, call, at_ms):
        self.at(at_ms)
        self.meter.end(call, self.now)
        return call.told

    def at(self, cpu_ms):
        self.figures.ns = int(cpu_ms * MS)
        self.now += 2 * SAMPLE_S


def test_a_call_alone_has_the_exact_figure():
    metering = Metering()
    call = metering.begin(1)
    assert metering.end(call, 3.5) == (2.5, True)
    call = metering.begin(9)  # what it burnt when idle is nobody's
    assert metering.end(call, 10) == (1.0, True)


def test_overlapping_calls_share_and_are_marked():
    metering = Metering()
    one = metering.begin(0)
    other = metering.begin(1)
    assert metering.end(one, 3) == (2.0, False)
    assert metering.end(other, 4) == (2.0, False)


def test_a_call_that_outlived_others_is_still_not_exact():
    metering = Metering()
    one, other = metering.begin(0), metering.begin(0)
    metering.end(other, 0)
    assert metering.end(one, 1) == (1.0, False)


def test_counters_that_go_back_cost_nothing():
    metering = Metering()
    call = metering.begin(1)
    assert metering.end(call, 0.5) == (0.0, True)


def test_without_figures_calls_cost_nothing():
    meter, call = InstanceMeter(), Call()
    meter.begin(call, 1.0)
    meter.end(call, 2.0)
    assert (call.told, call.peak_bytes) == ((0.0, True), 0)


def test_overlapping_calls_share_readings_and_a_lone_one_reads_its_own():
    figures = Figures()
    meter = InstanceMeter(figures)
    first = Call()
    meter.begin(first, 0.0)
    for n in range(100):  # all within one sample
        call = Call()
        meter.begin(call, SAMPLE_S * n / 100)
        meter.end(call, SAMPLE_S * n / 100)
    assert figures.reads <= 3
    figures.peak = 7
    meter.end(first, SAMPLE_S * 0.995)  # the last one reads, whatever the time
    assert first.peak_bytes == 7
    before = figures.reads
    for _ in range(10):
        call = Call()
        meter.begin(call, SAMPLE_S * 0.996)
        meter.end(call, SAMPLE_S * 0.996)
    assert figures.reads == before + 20


def test_the_peak_stays_when_the_group_is_gone():
    metering = Metering()
    metering.figures.peak = 9
    metering.end(metering.begin(0), 1)
    call = metering.begin(2)
    metering.figures.peak = 0
    metering.end(call, 3)
    assert call.peak_bytes == 9


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1000), st.booleans()), max_size=30))
def test_shares_add_up_to_what_was_used_while_calls_ran(steps):
    figures = Figures()
    meter, calls = InstanceMeter(figures), [Call() for _ in range(4)]
    running: set[int] = set()
    used = 0
    shared = now = 0.0
    for number, delta, late in steps:
        used += delta if running else 0
        figures.ns += delta
        now += 2 * SAMPLE_S if late else 0.0
        if number in running:
            running.discard(number)
            meter.end(calls[number], now)
            shared += calls[number].cpu_ns
        else:
            running.add(number)
            meter.begin(calls[number], now)
    for number in sorted(running):
        meter.end(calls[number], now)
        shared += calls[number].cpu_ns
    assert shared == pytest.approx(used)
