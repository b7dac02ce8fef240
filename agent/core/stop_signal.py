"""Which signal an image's STOPSIGNAL is: every form that Docker takes (moby/sys, ParseSignal).

Names with and without SIG in any case, their aliases, numbers, real-time signals counted from
either end. What is none of these is TERM, and the deploy says so.

| signal                              | handled by the program | not handled              | deploy |
|-------------------------------------|------------------------|--------------------------|--------|
| TERM, INT, QUIT, USR1, RTMIN+3, ... | the program's          | it ends by it            |        |
| WINCH (Apache's), CHLD, URG, CONT,  | the program's          | the node's init sends    | warns, |
| TSTP, TTIN, TTOU                    |                        | TERM in its place        | but of |
|                                     |                        |                          | WINCH  |
| STOP, which nobody can handle       |                        | TERM in its place        | warns  |
| KILL                                |                        | it ends at once, no grace| warns  |

With Docker what is not handled wastes the grace and ends with a kill; here as well where the
program is the first process itself.
"""

from __future__ import annotations

import re
from signal import Signals

_REAL_TIME = re.compile(r"RT(?:MIN\+|MAX-)([0-9]{1,2})")
_LAST = int(Signals.SIGRTMAX)
# What programs handle for other reasons, or not at all; WINCH is how Apache is told to end well.
_SELDOM = frozenset(
    {
        Signals.SIGCHLD,
        Signals.SIGCONT,
        Signals.SIGTSTP,
        Signals.SIGTTIN,
        Signals.SIGTTOU,
        Signals.SIGURG,
    }
)


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
    """Return the signal that ends an instance: never STOP, which would hold it, init and all."""
    number = parse_stop_signal(text)
    return int(Signals.SIGTERM) if number in (None, Signals.SIGSTOP) else int(number)


def advice(text: str) -> tuple[str, ...]:
    """Return a deploy's warning about a STOPSIGNAL that is none, or does not end instances well."""
    number, told = parse_stop_signal(text), f"the image's STOPSIGNAL {text[:40]!r}"
    if number is None:
        return (f"{told} is no signal: instances are ended by TERM",)
    if number == Signals.SIGSTOP:
        return (f"{told} ends nothing: instances are ended by TERM",)
    if number == Signals.SIGKILL:
        return (f"{told} lets no program end well: instances are killed without a grace",)
    if number in _SELDOM:
        return (f"{told} ends only programs that handle it as a stop: else the grace may pass",)
    return ()
