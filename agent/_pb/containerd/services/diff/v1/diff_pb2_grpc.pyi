from collections.abc import AsyncIterator

import grpc
import grpc.aio
from agent._pb.containerd.services.diff.v1 import diff_pb2 as _containerd_services_diff_v1_diff_pb2

class DiffStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    Apply: grpc.aio.UnaryUnaryMultiCallable[_containerd_services_diff_v1_diff_pb2.ApplyRequest, _containerd_services_diff_v1_diff_pb2.ApplyResponse]

class DiffServicer:
    async def Apply(self, request: _containerd_services_diff_v1_diff_pb2.ApplyRequest, context: grpc.aio.ServicerContext[_containerd_services_diff_v1_diff_pb2.ApplyRequest, _containerd_services_diff_v1_diff_pb2.ApplyResponse], /) -> _containerd_services_diff_v1_diff_pb2.ApplyResponse: ...

def add_DiffServicer_to_server(servicer: DiffServicer, server: grpc.aio.Server) -> None: ...

