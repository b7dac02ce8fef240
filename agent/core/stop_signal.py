"""Which signal an image's STOPSIGNAL is: every form that Docker takes (moby/sys, ParseSignal).

Names with and without SIG in any case, their aliases, numbers, real-time signals counted from
either end. What is none of these is TERM, and the deploy says so.
"""

from __future__ import annotations

import re
from signal import Signals

_REAL_TIME = re.compile(r"RT(?:MIN\+|MAX-)([0-9]{1,2})")
_LAST = int(Signals.SIGRTMAX)


def parse_stop_signal(text: str) -> int | None:
    """Return the signal's number; TERM for "", None for what is no signal."""
    word = text.strip().upper().removeprefix("SIG")
    if not word:
        return int(Signals.SIGTERM) if not text.strip() else None
    number: int | None = None
    if word.isascii() and word.removeprefix("+").isdecimal():
        number = int(word[-20:])
    elif (found := Signals.__members__.get(f"SIG{word}")) is not None:
        number = int(found)
    elif counted := _REAL_TIME.fullmatch(word):
        steps = int(counted[1])
        number = Signals.SIGRTMIN + steps if word.startswith("RTMIN") else _LAST - steps
        if number < Signals.SIGRTMIN:
            return None
    return number if number is not None and 1 <= number <= _LAST else None


def stop_signal_or_term(text: str) -> int:
    """Return the signal that ends an instance."""
    return parse_stop_signal(text) or int(Signals.SIGTERM)


def advice(text: str) -> tuple[str, ...]:
    """Return a deploy's warning about a STOPSIGNAL that is none."""
    if parse_stop_signal(text) is not None:
        return ()
    return (f"the image's STOPSIGNAL {text[:40]!r} is no signal: instances are ended by TERM",)
