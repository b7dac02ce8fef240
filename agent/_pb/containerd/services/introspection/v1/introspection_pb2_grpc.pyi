from collections.abc import AsyncIterator

import grpc
import grpc.aio
from agent._pb.containerd.services.introspection.v1 import introspection_pb2 as _containerd_services_introspection_v1_introspection_pb2
from google.protobuf import empty_pb2 as _google_protobuf_empty_pb2

class IntrospectionStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    Plugins: grpc.aio.UnaryUnaryMultiCallable[_containerd_services_introspection_v1_introspection_pb2.PluginsRequest, _containerd_services_introspection_v1_introspection_pb2.PluginsResponse]
    Server: grpc.aio.UnaryUnaryMultiCallable[_google_protobuf_empty_pb2.Empty, _containerd_services_introspection_v1_introspection_pb2.ServerResponse]

class IntrospectionServicer:
    async def Plugins(self, request: _containerd_services_introspection_v1_introspection_pb2.PluginsRequest, context: grpc.aio.ServicerContext[_containerd_services_introspection_v1_introspection_pb2.PluginsRequest, _containerd_services_introspection_v1_introspection_pb2.PluginsResponse], /) -> _containerd_services_introspection_v1_introspection_pb2.PluginsResponse: ...
    async def Server(self, request: _google_protobuf_empty_pb2.Empty, context: grpc.aio.ServicerContext[_google_protobuf_empty_pb2.Empty, _containerd_services_introspection_v1_introspection_pb2.ServerResponse], /) -> _containerd_services_introspection_v1_introspection_pb2.ServerResponse: ...

def add_IntrospectionServicer_to_server(servicer: IntrospectionServicer, server: grpc.aio.Server) -> None: ...

