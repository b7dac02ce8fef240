"""One bench or test session at a time on a host: the lock that both take.

Benches that a comparison starts find in their environment that it has the lock for them.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.running import open_lock

ALONE = Path("/run/lock/kindling-tests.lock")
HELD = "KINDLING_BENCH_LOCK_HELD"


@contextmanager
def taken(path: Path = ALONE) -> Iterator[None]:
    """Hold the lock, here and for what is started meanwhile; say so if it has to be waited for."""
    if HELD in os.environ:
        yield
        return
    with open_lock(path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for the bench or test session that holds {path}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        os.environ[HELD] = str(os.getpid())
        try:
            yield
        finally:
            del os.environ[HELD]
