"""How benches are asked for and how they end: options, orders, what counts when cut short."""

from __future__ import annotations

import fcntl
import importlib
import inspect
import os
from collections import Counter
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import compare, needs, page, rounds, turn
from bench.options import Options
from bench.proxies import is_listening
from tests.integration.running import open_lock


def test_without_a_name_the_whole_run_is_meant() -> None:
    names, options, installs = command.parsed([])
    assert names == list(command.WHOLE)
    assert options.whole
    assert installs


def test_a_name_given_twice_runs_once() -> None:
    names, options, installs = command.parsed(["cold", "warm", "cold", "--no-install", "--quick"])
    assert names == ["cold", "warm"]
    assert (options.quick, options.whole, installs) == (True, False, False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kold"], "no bench kold: there are bursts, cold, control"),
        (["cold", "--without", "fifo,fofi"], "no lever fofi: there are anchors, compiled, fifo, s"),
        (["--without", "compiled", "--no-install"], "is done by installing: leave out --no-inst"),
        (["--rounds", "0"], "--rounds wants a number from 1 to"),
        (["--rounds", "-3"], "--rounds wants a number from 1 to"),
        (["--rounds", "many"], "invalid int value: 'many'"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_wrong_use_is_said_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.parsed(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["."], "the following arguments are required: B"),
        ([".", "no-such-branch"], "'no-such-branch' is no revision"),
        ([".", ".", "cold", "--pairs", "2"], "--pairs wants 6 to 100, not 2"),
        ([".", ".", "kold"], "no bench kold"),
    ],
)
def test_wrong_use_of_compare_is_said_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["compare", *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_levers_of_both_kinds_are_left_out_by_one_option() -> None:
    _, options, _ = command.parsed(["cold", "--without", "slots,compiled,fifo"])
    assert options.without == ("slots", "compiled", "fifo")
    assert options.environment() == {"KINDLING_COMPILED": "0"}
    assert options.sections(network={"mtu": 1400}) == {
        "network": {"mtu": 1400, "warm_slots": 0},
        "runtime": {"fifo": False},
    }
    assert Options().sections() == {}
    assert Options().environment() == {}


def test_every_bench_runs_and_says_what_it_needs() -> None:
    assert set(command.WHOLE) <= set(command.NAMES)
    for name, module in command.NAMES.items():
        found = importlib.import_module(module)
        assert list(inspect.signature(found.run).parameters) == ["options"], name
        assert all(isinstance(one, str) for one in getattr(found, "NEEDS", ())), name


def test_what_a_host_lacks_is_one_line_with_what_to_type() -> None:
    lacking = needs.missing(["sh", "no-such-peer", "no-such-peer"], [Path("/no/such/place")])
    assert lacking[-2:] == ["no-such-peer", "/no/such/place"]
    said = needs.sentence(["caddy", "go"])
    assert said == "this host lacks caddy, go: run 'setup/host.sh --bench' as root"


def test_a_host_of_the_demo_alone_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(needs, "ALWAYS", ("no-such-peer",))
    monkeypatch.setattr(command, "build", lambda _: pytest.fail("something was begun"))
    assert command.main(["cold"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "run 'setup/host.sh --bench'" in line or "run it by 'sudo'" in line


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (Options(), 20),
        (Options(whole=True), 8),
        (Options(quick=True), 3),
        (Options(quick=True, whole=True), 3),
        (Options(quick=True, rounds=5), 5),
    ],
)
def test_how_many_rounds_there_are(options: Options, count: int) -> None:
    assert options.count(quick=3, whole=8, alone=20) == count


def test_each_round_takes_everybody_once_in_an_order_of_its_own() -> None:
    taken: list[str] = []

    def contender(name: str) -> rounds.Contender:
        def take(number: int) -> rounds.Found:
            taken.append(name)
            return {name: float(number)}

        return take

    names = ["a", "b", "c", "d"]
    found = rounds.take(Options(), 6, {name: contender(name) for name in names})
    assert found == {name: [1.0, 2.0, 3.0, 4.0, 5.0, 6.0] for name in names}
    orders = [tuple(taken[place : place + 4]) for place in range(0, len(taken), 4)]
    assert all(Counter(order) == Counter(names) for order in orders)
    assert len(set(orders)) > 2


@pytest.mark.parametrize(("at", "kept"), [(3, [1.0, 2.0]), (2, [1.0])])
def test_ctrl_c_keeps_the_whole_rounds(at: int, kept: list[float]) -> None:
    def steady(number: int) -> rounds.Found:
        return {"steady": float(number)}

    def interrupted(number: int) -> rounds.Found:
        if number == at:
            raise KeyboardInterrupt
        return {"other": float(number)}

    options = Options()
    found = rounds.take(options, 5, {"steady": steady, "interrupted": interrupted})
    assert found == {"steady": kept, "other": kept}
    assert options.stopped.is_set()


def test_ctrl_c_before_the_first_whole_round_is_passed_on() -> None:
    def interrupted(number: int) -> rounds.Found:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rounds.take(Options(), 5, {"a": interrupted})


def test_only_kindlings_own_figures_are_compared() -> None:
    samples = {"kindling": [1.0, 2.0, 9.0], "ctr run": [5.0], "delete, kindling": [3.0]}
    assert compare.figures_of({"samples": samples, "figures": {}}) == {
        "kindling": 2.0,
        "delete, kindling": 3.0,
    }
    plain = {"start_s": 2, "plain_starts_per_s": 3.0, "calls": {"answered": 4}}
    assert compare.figures_of({"samples": {}, "figures": plain}) == {"start_s": 2.0}


def test_a_listener_is_found_in_the_kernels_table() -> None:
    table = (
        "  sl  local_address rem_address   st tx_queue rx_queue\n"
        "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n"
        "   1: 0100007F:1F91 0100007F:0050 01 00000000:00000000\n"
    )
    assert is_listening(table, 8080)
    assert not is_listening(table, 8081)
    assert not is_listening(table, 80)


def test_a_run_that_found_nothing_still_writes_a_page(tmp_path: Path) -> None:
    assert "<h1>" in page.write(tmp_path / "out", ["cold"]).read_text()


def test_what_a_bench_starts_does_not_wait_for_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(turn.HELD, raising=False)
    file = tmp_path / "lock"
    with turn.taken(file):
        assert turn.HELD in os.environ
        with turn.taken(file):  # as in a child, which would wait for ever
            pass
    assert turn.HELD not in os.environ
    with turn.taken(file), open_lock(file) as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
