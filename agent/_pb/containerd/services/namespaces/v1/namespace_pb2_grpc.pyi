from collections.abc import AsyncIterator

import grpc
import grpc.aio
from agent._pb.containerd.services.namespaces.v1 import namespace_pb2 as _containerd_services_namespaces_v1_namespace_pb2
from google.protobuf import empty_pb2 as _google_protobuf_empty_pb2

class NamespacesStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    Get: grpc.aio.UnaryUnaryMultiCallable[_containerd_services_namespaces_v1_namespace_pb2.GetNamespaceRequest, _containerd_services_namespaces_v1_namespace_pb2.GetNamespaceResponse]
    List: grpc.aio.UnaryUnaryMultiCallable[_containerd_services_namespaces_v1_namespace_pb2.ListNamespacesRequest, _containerd_services_namespaces_v1_namespace_pb2.ListNamespacesResponse]
    Create: grpc.aio.UnaryUnaryMultiCallable[_containerd_services_namespaces_v1_namespace_pb2.CreateNamespaceRequest, _containerd_services_namespaces_v1_namespace_pb2.CreateNamespaceResponse]
    Delete: grpc.aio.UnaryUnaryMultiCallable[_containerd_services_namespaces_v1_namespace_pb2.DeleteNamespaceRequest, _google_protobuf_empty_pb2.Empty]

class NamespacesServicer:
    async def Get(self, request: _containerd_services_namespaces_v1_namespace_pb2.GetNamespaceRequest, context: grpc.aio.ServicerContext[_containerd_services_namespaces_v1_namespace_pb2.GetNamespaceRequest, _containerd_services_namespaces_v1_namespace_pb2.GetNamespaceResponse], /) -> _containerd_services_namespaces_v1_namespace_pb2.GetNamespaceResponse: ...
    async def List(self, request: _containerd_services_namespaces_v1_namespace_pb2.ListNamespacesRequest, context: grpc.aio.ServicerContext[_containerd_services_namespaces_v1_namespace_pb2.ListNamespacesRequest, _containerd_services_namespaces_v1_namespace_pb2.ListNamespacesResponse], /) -> _containerd_services_namespaces_v1_namespace_pb2.ListNamespacesResponse: ...
    async def Create(self, request: _containerd_services_namespaces_v1_namespace_pb2.CreateNamespaceRequest, context: grpc.aio.ServicerContext[_containerd_services_namespaces_v1_namespace_pb2.CreateNamespaceRequest, _containerd_services_namespaces_v1_namespace_pb2.CreateNamespaceResponse], /) -> _containerd_services_namespaces_v1_namespace_pb2.CreateNamespaceResponse: ...
    async def Delete(self, request: _containerd_services_namespaces_v1_namespace_pb2.DeleteNamespaceRequest, context: grpc.aio.ServicerContext[_containerd_services_namespaces_v1_namespace_pb2.DeleteNamespaceRequest, _google_protobuf_empty_pb2.Empty], /) -> _google_protobuf_empty_pb2.Empty: ...

def add_NamespacesServicer_to_server(servicer: NamespacesServicer, server: grpc.aio.Server) -> None: ...

