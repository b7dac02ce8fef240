"""timerfd_create(2): a timer to the microsecond that a loop waits for like any other descriptor.

Loops count their own timers in whole milliseconds. Python has these calls from 3.13 on.
"""

from __future__ import annotations

import ctypes
import time

from agent.linux.libc import LIBC, last_error

# include/uapi/linux/timerfd.h: TFD_NONBLOCK and TFD_CLOEXEC are those of open(2).
_NONBLOCK, _CLOEXEC = 0o4000, 0o2000000
_NS = 1_000_000_000


class _Spec(ctypes.Structure):
    """Struct itimerspec: the interval, then the first expiry, in seconds and nanoseconds."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("first_s", ctypes.c_long),
        ("first_ns", ctypes.c_long),
    )


LIBC.timerfd_create.argtypes = [ctypes.c_int, ctypes.c_int]
LIBC.timerfd_settime.argtypes = [
    ctypes.c_int,
    ctypes.c_int,
    ctypes.POINTER(_Spec),
    ctypes.POINTER(_Spec),
]


def create() -> int:
    """Return the descriptor of a timer that is not set; the caller's to close. Raises OSError."""
    # SAFETY: no pointers; the descriptor is not inherited and never blocks a reader.
    descriptor = int(LIBC.timerfd_create(time.CLOCK_MONOTONIC, _NONBLOCK | _CLOEXEC))
    if descriptor < 0:
        raise last_error("timerfd_create")
    return descriptor


def expire_in(descriptor: int, seconds: float) -> None:
    """Make the timer readable once, in more than 0 seconds; it is not readable until then."""
    whole, ns = divmod(max(1, round(seconds * _NS)), _NS)
    # SAFETY: the structure outlives the call, which only reads it; no old value is asked for.
    if LIBC.timerfd_settime(descriptor, 0, ctypes.byref(_Spec(0, 0, whole, ns)), None) != 0:
        raise last_error("timerfd_settime")
