"""What a bench needs of the host, asked before anything is built or started.

A bench names its programs in NEEDS; every one needs what starts agents and draws pictures.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from tests.integration.running import LIB, TEST_SLOTS

SETUP = "setup/host.sh --bench"
ALWAYS = ("gcc", "rsvg-convert", "taskset")
PLACES = (LIB / "bin" / "containerd", TEST_SLOTS)
PATHS = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # beyond what root's PATH may have


def program(name: str) -> str | None:
    """Return the path of a program of this host, None when there is none."""
    return shutil.which(name) or next(
        (found for place in PATHS if (found := shutil.which(name, path=place))), None
    )


def missing(programs: Iterable[str], places: Collection[Path] = PLACES) -> list[str]:
    """Return which programs and places this host lacks, each once, in order."""
    wanted = dict.fromkeys((*ALWAYS, *programs))
    lacking = [name for name in wanted if program(name) is None]
    return lacking + [str(place) for place in places if not place.exists()]


def sentence(lacking: Collection[str]) -> str:
    """Say in one line what is missing and what to type."""
    return f"this host lacks {', '.join(lacking)}: run '{SETUP}' as root"
