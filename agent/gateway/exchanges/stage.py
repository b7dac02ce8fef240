"""The stages of a call.

NEW → (COLLECTING) → QUEUED → (CONNECTING) → RUNNING → (EXPLAINING) → DONE; jobs go from COLLECTING
to JOB to DONE. What happens in them is `exchange.py`'s.
"""

from typing import Final

NEW: Final = 0
COLLECTING: Final = 1
QUEUED: Final = 2
CONNECTING: Final = 3
RUNNING: Final = 4
EXPLAINING: Final = 5
JOB: Final = 6
DONE: Final = 7
