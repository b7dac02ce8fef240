"""The verbs that watch: StreamLogs, WatchEvents, WatchCapacity.

Each ends when the client goes, when the node ends the stream, or by the client's deadline; the
node's iterator is closed in all three cases.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.control.convert_watch import capacity_to_proto, event_to_proto, log_to_proto
from agent.control.deploying import named
from agent.control.node import CapacityView, LogEntry, LogQuery, WatchedEvent
from agent.control.verbs import Verbs
from agent.errors import InvalidSpec, Problem

# Reports of capacity closer together than this would be work for nobody.
SHORTEST_INTERVAL_S = 0.05


class WatchVerbs(Verbs):
    """What happens."""

    async def stream_logs(
        self, request: pb.StreamLogsRequest
    ) -> AsyncGenerator[pb.LogLine | None, None]:
        """Follow a function's log."""
        query = LogQuery(
            instance=request.instance,
            call=request.call,
            follow=request.follow,
            tail=request.tail if request.HasField("tail") else None,
        )
        entries = self.node.logs(named(request.name), query)
        async with aclosing(cast("AsyncGenerator[LogEntry | None, None]", entries)):
            async for entry in entries:
                yield log_to_proto(request.name, entry) if entry is not None else None

    async def watch_events(
        self, request: pb.WatchEventsRequest
    ) -> AsyncGenerator[pb.Event | None, None]:
        """Follow what happens on the node."""
        events = self.node.events(request.resume_token, frozenset(request.functions))
        async with aclosing(cast("AsyncGenerator[WatchedEvent | None, None]", events)):
            async for event in events:
                yield event_to_proto(event) if event is not None else None

    async def watch_capacity(
        self, request: pb.WatchCapacityRequest
    ) -> AsyncGenerator[pb.Capacity, None]:
        """Follow the node's free capacity."""
        interval_s = 1.0
        if request.HasField("min_interval"):
            interval_s = request.min_interval.ToNanoseconds() / 1e9
        if interval_s < 0:
            raise InvalidSpec([Problem("min_interval", "is negative")])
        views = self.node.capacity(max(interval_s, SHORTEST_INTERVAL_S))
        async with aclosing(cast("AsyncGenerator[CapacityView, None]", views)):
            async for view in views:
                yield capacity_to_proto(view)
