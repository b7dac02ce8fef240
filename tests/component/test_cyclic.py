"""Searches for cyclic garbage look at what is new, and keep nothing for ever."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEFORE = """
import gc, weakref
from agent.aio.cyclic import Searches

class Ring:
    def __init__(self):
        self.me = self

searches = Searches()
searches.begin()
searches.begin()
held = [[n] for n in range(200_000)]
"""
CASES = {
    "what has survived is not looked at again": """
looked = len(gc.get_objects())
assert looked < 50_000, looked
assert gc.get_freeze_count() > 150_000, gc.get_freeze_count()
""",
    "new rings are found": """
new = weakref.ref(Ring())
more = [[n] for n in range(100_000)]
assert new() is None
""",
    "old rings are found by a search of everything": """
old = Ring()
more = [[n] for n in range(100_000)]
seen = weakref.ref(old)
del old
gc.collect()
assert seen() is not None, "it was not set aside: this shows nothing"
assert searches.everything() > 0
assert seen() is None
assert searches.whole == 0
assert gc.get_freeze_count() > 250_000
""",
}


@pytest.mark.parametrize("case", CASES)
def test_searches(case):
    command = [sys.executable, "-c", BEFORE + CASES[case]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
