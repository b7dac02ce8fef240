from collections.abc import AsyncIterator

import grpc
import grpc.aio
from agent._pb.containerd.services.events.v1 import events_pb2 as _containerd_services_events_v1_events_pb2
from agent._pb.containerd.types import event_pb2 as _containerd_types_event_pb2

class EventsStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    Subscribe: grpc.aio.UnaryStreamMultiCallable[_containerd_services_events_v1_events_pb2.SubscribeRequest, _containerd_types_event_pb2.Envelope]

class EventsServicer:
    def Subscribe(self, request: _containerd_services_events_v1_events_pb2.SubscribeRequest, context: grpc.aio.ServicerContext[_containerd_services_events_v1_events_pb2.SubscribeRequest, _containerd_types_event_pb2.Envelope], /) -> AsyncIterator[_containerd_types_event_pb2.Envelope]: ...

def add_EventsServicer_to_server(servicer: EventsServicer, server: grpc.aio.Server) -> None: ...

