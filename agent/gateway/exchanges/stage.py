"""The stages of a call.

NEW → (COLLECTING) → QUEUED → (CONNECTING) → RUNNING → (EXPLAINING) → DONE; jobs go from COLLECTING
to JOB to DONE. What happens in them is `exchange.py`'s.
"""

NEW, COLLECTING, QUEUED, CONNECTING, RUNNING, EXPLAINING, JOB, DONE = range(8)
