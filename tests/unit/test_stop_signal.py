"""STOPSIGNAL in every form that Docker takes, and in some that it does not."""

from __future__ import annotations

import signal

import pytest

from agent.core.stop_signal import advice, parse_stop_signal, stop_signal_or_term


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", 15),
        ("SIGTERM", 15),
        ("TERM", 15),
        ("term", 15),
        ("sigterm", 15),
        ("SigInt", 2),
        ("15", 15),
        ("015", 15),
        ("+15", 15),
        (" SIGQUIT ", 3),
        ("SIGWINCH", 28),
        ("SIGPWR", 30),
        ("PWR", 30),
        ("SIGUSR1", 10),
        ("KILL", 9),
        ("SIGCLD", 17),
        ("SIGIOT", 6),
        ("SIGPOLL", 29),
        ("SIGSTKFLT", 16),
        ("SIGRTMIN", 34),
        ("RTMIN", 34),
        ("SIGRTMIN+3", 37),
        ("RTMIN+3", 37),
        ("rtmin+15", 49),
        ("SIGRTMAX-14", 50),
        ("SIGRTMAX-1", 63),
        ("RTMAX", 64),
        ("37", 37),
        ("64", 64),
    ],
)
def test_forms_that_docker_takes(text, number):
    assert parse_stop_signal(text) == number
    assert stop_signal_or_term(text) == number


@pytest.mark.parametrize(
    "text",
    [
        *("0", "65", "-1", "1.5", "9" * 5000, "\u0669", "SIG", "SIG15x", "SIGNOTHING", "TERM,INT"),
        *("SIGRTMIN+31", "RTMAX-31", "RTMIN-1", "RTMAX+1", "RTMIN+", "RTMIN+3x", "SIG TERM"),
        *("SIG_DFL", "__class__", "SIGSIGTERM"),
    ],
)
def test_what_is_no_signal_is_term_and_a_warning(text):
    assert parse_stop_signal(text) is None
    assert stop_signal_or_term(text) == signal.SIGTERM
    (warning,) = advice(text)
    assert "STOPSIGNAL" in warning
    assert "TERM" in warning
    assert len(warning) < 140


@pytest.mark.parametrize("text", ["", "TERM", "INT", "SIGWINCH", "RTMIN+3", "SIGUSR1", "SIGIO"])
def test_what_ends_a_program_needs_no_warning(text):
    assert advice(text) == ()


@pytest.mark.parametrize(
    ("text", "number", "words"),
    [
        ("SIGSTOP", 15, "ends nothing: instances are ended by TERM"),
        ("19", 15, "ends nothing: instances are ended by TERM"),
        ("kill", 9, "killed without a grace"),
        ("SIGCHLD", 17, "only programs that handle it as a stop"),
        ("CLD", 17, "only programs that handle it as a stop"),
        ("SIGCONT", 18, "only programs that handle it as a stop"),
        ("TSTP", 20, "only programs that handle it as a stop"),
        ("TTIN", 21, "only programs that handle it as a stop"),
        ("22", 22, "only programs that handle it as a stop"),
        ("SIGURG", 23, "only programs that handle it as a stop"),
    ],
)
def test_what_ends_no_program_well_is_warned_of(text, number, words):
    assert stop_signal_or_term(text) == number
    (warning,) = advice(text)
    assert words in warning
    assert len(warning) < 140
