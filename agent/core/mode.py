"""Whether the node serves, drains, stops, or has been handed over to the next worker: one value.

    SERVING ⇄ DRAINING      an operator's order, which outlives the worker (`agent/store`)
       └─┬─┘
         ├→ STOPPING        the agent ends: calls end, then functions
         └→ HANDED_OVER     another worker serves: what is in flight here ends here

An order that comes after the end has begun is refused. Others ask questions (`takes_calls`); only
the composition root and the scheduler's door give orders.
"""

from __future__ import annotations

from enum import Enum

from agent.errors import FailedPrecondition


class Mode(Enum):
    """What the node is doing."""

    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"
    HANDED_OVER = "handed over"


_ENDS = (Mode.STOPPING, Mode.HANDED_OVER)


class NodeMode:
    """The node's one mode."""

    def __init__(self) -> None:
        self._become(Mode.SERVING)

    def __repr__(self) -> str:
        return f"<NodeMode {self.mode.value}>"

    def _become(self, mode: Mode) -> None:
        self.mode = mode
        self.takes_calls = mode is Mode.SERVING
        """Whether new calls and jobs find their instances here. Asked for every call."""
        self.owns_instances = mode is not Mode.HANDED_OVER
        """Whether instances are started and ended here; else the next worker does it."""

    def drain(self) -> None:
        """Take no new calls, as an operator orders; raises FailedPrecondition at the end."""
        self._order(Mode.DRAINING)

    def undrain(self) -> None:
        """Take calls again; raises FailedPrecondition at the end."""
        self._order(Mode.SERVING)

    def stop(self) -> None:
        """Begin the end of the agent."""
        if self.mode is not Mode.HANDED_OVER:
            self._become(Mode.STOPPING)

    def hand_over(self) -> None:
        """Leave every instance to the next worker."""
        self._become(Mode.HANDED_OVER)

    @property
    def ends(self) -> bool:
        """Whether this worker takes no orders any more."""
        return self.mode in _ENDS

    def check(self) -> None:
        """Raise FailedPrecondition if this worker takes no orders any more."""
        if self.ends:
            raise FailedPrecondition(f"this worker is {self.mode.value}: ask again in a moment")

    def _order(self, mode: Mode) -> None:
        self.check()
        self._become(mode)
