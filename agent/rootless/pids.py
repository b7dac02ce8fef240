"""Who is who in a house, for people and tests: <run>/pids.json, a pid by name, 0 for none."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from agent.rootless.settings import PIDS_NAME


def write(run: Path, pids: Mapping[str, int]) -> None:
    """Replace the file; a full disk stops nothing."""
    path = run / PIDS_NAME
    fresh = path.with_suffix(".new")
    with suppress(OSError):
        fresh.write_text(json.dumps({"supervise": os.getpid(), **pids}) + "\n")
        fresh.replace(path)
