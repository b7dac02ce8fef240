"""The words for what went wrong with an instance, as failures that a contract can tell.

Plain functions of what is known; when they are asked is `instance.py`'s and
`agent/calls/target.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agent.contracts.base import Hook
from agent.core.memory_kills import UNKNOWN
from agent.instances.endpoint import Endpoint
from agent.model.failure import Failure, FailureKind
from agent.model.records import Exit


@dataclass(frozen=True, slots=True)
class Scene:
    """Where it went wrong, how long that took, and what the function itself has said last."""

    endpoint: Endpoint
    waited_s: float
    log_lines: tuple[str, ...]

    def failure(self, kind: FailureKind, message: str, **fields: Any) -> Failure:
        """Return a failure of this scene."""
        return Failure(
            kind,
            message,
            address=self.endpoint.address,
            port=self.endpoint.port,
            waited_s=self.waited_s,
            log_lines=self.log_lines,
            **fields,
        )


def nobody_listens(scene: Scene, limit_s: float) -> Failure:
    """The process runs, but nothing answers on the container's own address."""
    where = f"{scene.endpoint.address}:{scene.endpoint.port}"
    what = f"nothing listens on {where} after {scene.waited_s:.1f} s"
    return scene.failure(FailureKind.START_TIMEOUT, what, limit=limit_s)


def hook_failed(scene: Scene, hook: Hook, status: int) -> Failure:
    """The initialize hook answered badly, or not at all (status 0)."""
    what = f"the initialize hook answered {status}" if status else "the hook got no answer"
    return scene.failure(FailureKind.INIT_HOOK_FAILED, what, limit=hook.timeout_s)


def exited(scene: Scene, kind: FailureKind, how: Exit, memory_mb: int) -> Failure:
    """The process has ended; out of memory is a kind of its own, whatever `kind` says."""
    if how.out_of_memory:
        kind, what = FailureKind.OUT_OF_MEMORY, f"ran out of its {memory_mb} MB of memory"
    elif how.exit_code == UNKNOWN:
        what = "ended, nobody saw how"
    elif how.signal is not None:
        what = f"was ended by signal {how.signal}"
    else:
        what = f"exited with code {how.exit_code}"
    return scene.failure(
        kind,
        f"the function's process {what}",
        exit_code=how.exit_code,
        signal=how.signal,
        out_of_memory=how.out_of_memory,
    )


def bad_response(scene: Scene) -> Failure:
    """The connection broke though the instance lives."""
    what = "the function closed the connection without a whole answer"
    return scene.failure(FailureKind.BAD_RESPONSE, what)
