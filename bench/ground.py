"""A file system of its own for one measurement, as a host has it where nothing was removed lately.

ext4 goes past inodes that were freed in the last minute, one by one (`recently_deleted` in
fs/ext4/ialloc.c). Where one contender has just removed some thousand files, the next one pays for
them: 0.4 s of 2 s were seen.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE_BYTES = 16 << 30  # sparse
OPTIONS = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"


@contextmanager
def fresh() -> Iterator[Path]:
    """Give an empty directory on an ext4 of its own; nothing of it is left afterwards."""
    file, name = tempfile.mkstemp(prefix="kd-ground-", suffix=".img", dir="/var/tmp")
    image, place = Path(name), Path(tempfile.mkdtemp(prefix="kd-ground-", dir="/var/tmp"))
    try:
        os.truncate(file, SIZE_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m0", "-E", OPTIONS, name], check=True)
        # Nobody fills in what was left out of it while somebody is measured.
        subprocess.run(["mount", "-o", "loop,noinit_itable", name, str(place)], check=True)
        try:
            place.chmod(0o755)
            os.sync()  # what the one before has written is not this one's
            yield place
        finally:
            subprocess.run(["umount", str(place)], check=True)
    finally:
        os.close(file)
        place.rmdir()
        image.unlink()
