from collections.abc import AsyncIterator

import grpc
import grpc.aio
from agent._pb.containerd.services.containers.v1 import containers_pb2 as _containerd_services_containers_v1_containers_pb2
from google.protobuf import empty_pb2 as _google_protobuf_empty_pb2

class ContainersStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    Get: grpc.aio.UnaryUnaryMultiCallable[_containerd_services_containers_v1_containers_pb2.GetContainerRequest, _containerd_services_containers_v1_containers_pb2.GetContainerResponse]
    List: grpc.aio.UnaryUnaryMultiCallable[_containerd_services_containers_v1_containers_pb2.ListContainersRequest, _containerd_services_containers_v1_containers_pb2.ListContainersResponse]
    Create: grpc.aio.UnaryUnaryMultiCallable[_containerd_services_containers_v1_containers_pb2.CreateContainerRequest, _containerd_services_containers_v1_containers_pb2.CreateContainerResponse]
    Update: grpc.aio.UnaryUnaryMultiCallable[_containerd_services_containers_v1_containers_pb2.UpdateContainerRequest, _containerd_services_containers_v1_containers_pb2.UpdateContainerResponse]
    Delete: grpc.aio.UnaryUnaryMultiCallable[_containerd_services_containers_v1_containers_pb2.DeleteContainerRequest, _google_protobuf_empty_pb2.Empty]

class ContainersServicer:
    async def Get(self, request: _containerd_services_containers_v1_containers_pb2.GetContainerRequest, context: grpc.aio.ServicerContext[_containerd_services_containers_v1_containers_pb2.GetContainerRequest, _containerd_services_containers_v1_containers_pb2.GetContainerResponse], /) -> _containerd_services_containers_v1_containers_pb2.GetContainerResponse: ...
    async def List(self, request: _containerd_services_containers_v1_containers_pb2.ListContainersRequest, context: grpc.aio.ServicerContext[_containerd_services_containers_v1_containers_pb2.ListContainersRequest, _containerd_services_containers_v1_containers_pb2.ListContainersResponse], /) -> _containerd_services_containers_v1_containers_pb2.ListContainersResponse: ...
    async def Create(self, request: _containerd_services_containers_v1_containers_pb2.CreateContainerRequest, context: grpc.aio.ServicerContext[_containerd_services_containers_v1_containers_pb2.CreateContainerRequest, _containerd_services_containers_v1_containers_pb2.CreateContainerResponse], /) -> _containerd_services_containers_v1_containers_pb2.CreateContainerResponse: ...
    async def Update(self, request: _containerd_services_containers_v1_containers_pb2.UpdateContainerRequest, context: grpc.aio.ServicerContext[_containerd_services_containers_v1_containers_pb2.UpdateContainerRequest, _containerd_services_containers_v1_containers_pb2.UpdateContainerResponse], /) -> _containerd_services_containers_v1_containers_pb2.UpdateContainerResponse: ...
    async def Delete(self, request: _containerd_services_containers_v1_containers_pb2.DeleteContainerRequest, context: grpc.aio.ServicerContext[_containerd_services_containers_v1_containers_pb2.DeleteContainerRequest, _google_protobuf_empty_pb2.Empty], /) -> _google_protobuf_empty_pb2.Empty: ...

def add_ContainersServicer_to_server(servicer: ContainersServicer, server: grpc.aio.Server) -> None: ...

