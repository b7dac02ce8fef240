"""prctl(2): what a process may ask for itself."""

from __future__ import annotations

import ctypes

from agent.linux.libc import LIBC, last_error

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

LIBC.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4


def become_subreaper() -> None:
    """Make orphans below this process its children instead of init's."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(signal_number: int) -> None:
    """Ask for a signal when the parent's thread ends; lasts over exec of ordinary programs."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def set_process_name(name: str) -> None:
    """Give this process the name that ps and top show; cut at 15 bytes by the kernel."""
    # SAFETY: the buffer outlives the call, and the kernel only reads up to its NUL.
    buffer = ctypes.create_string_buffer(name.encode())
    _prctl(_PR_SET_NAME, ctypes.addressof(buffer))


def _prctl(option: int, value: int) -> None:
    # SAFETY: only options with one argument come through here; none writes to memory.
    if LIBC.prctl(option, value, 0, 0, 0) != 0:
        raise last_error(f"prctl({option}, {value})")
