"""What an operator has ordered of the node and what outlives worker, agent and host: the drain.

One small JSON file in the data directory, written whole or not at all and synced, so that it is
there after a power loss. A file that cannot be read counts as a drain: taking no calls until
somebody looks is the order that does no harm.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from agent.errors import RuntimeUnavailable

log = logging.getLogger(__name__)


class Orders:
    """The orders in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def drained(self) -> bool:
        """Say whether the node was ordered to take no calls."""
        try:
            return bool(json.loads(self._path.read_text("utf-8"))["drained"])
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.error("%s cannot be read (%s): the node stays drained", self._path, error)  # noqa: TRY400 - one line
            return True

    def order_drain(self, drained: bool) -> None:
        """Note the order; raises RuntimeUnavailable when it cannot be kept."""
        draft = self._path.with_suffix(".new")
        try:
            with draft.open("w", encoding="utf-8") as file:
                json.dump({"drained": drained}, file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path)
        except OSError as error:
            raise RuntimeUnavailable(
                f"the order cannot be kept: {self._path}: {error.strerror}"
            ) from error
