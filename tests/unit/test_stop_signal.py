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
    assert advice(text) == ()


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
