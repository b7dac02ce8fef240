"""The C library, loaded once, and its errors as OSError. Only this room calls it."""

from __future__ import annotations

import ctypes
import os

# SAFETY: use_errno keeps each call's errno for its own thread. The calls' argument types stand
# beside the functions that make them, so that pointers are not cut to 32 bits. The library stays
# loaded for the life of the process.
LIBC = ctypes.CDLL(None, use_errno=True)


def last_error(what: str | None = None) -> OSError:
    """Return the error of this thread's last call; `what` is the thing it was about."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)
