from collections.abc import AsyncIterator

import grpc
import grpc.aio
from agent._pb.containerd.services.version.v1 import version_pb2 as _containerd_services_version_v1_version_pb2
from google.protobuf import empty_pb2 as _google_protobuf_empty_pb2

class VersionStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    Version: grpc.aio.UnaryUnaryMultiCallable[_google_protobuf_empty_pb2.Empty, _containerd_services_version_v1_version_pb2.VersionResponse]

class VersionServicer:
    async def Version(self, request: _google_protobuf_empty_pb2.Empty, context: grpc.aio.ServicerContext[_google_protobuf_empty_pb2.Empty, _containerd_services_version_v1_version_pb2.VersionResponse], /) -> _containerd_services_version_v1_version_pb2.VersionResponse: ...

def add_VersionServicer_to_server(servicer: VersionServicer, server: grpc.aio.Server) -> None: ...

