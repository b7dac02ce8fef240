"""When each image was last used, by digest: one small JSON file beside the images.

Written now and then, never per call: what a crash loses makes an image look a minute older. A file
that cannot be read or written costs the order of collection, nothing else.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger(__name__)


class LastUses:
    """The file. Its methods block."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> dict[str, int]:
        """Return what was kept, ns since the epoch by digest; nothing when it cannot be read."""
        try:
            found = json.loads(self._path.read_bytes())
            return {str(digest): int(at_ns) for digest, at_ns in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            log.warning("%s cannot be read (%s): images count as unused so far", self._path, error)
            return {}

    def save(self, last_ns: Mapping[str, int]) -> None:
        """Write it whole or not at all."""
        draft = self._path.with_suffix(".new")
        try:
            draft.write_text(json.dumps(last_ns, sort_keys=True), "utf-8")
            draft.replace(self._path)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, os.strerror(error.errno or 0))
