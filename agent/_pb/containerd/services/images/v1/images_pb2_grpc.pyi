from collections.abc import AsyncIterator

import grpc
import grpc.aio
from agent._pb.containerd.services.images.v1 import images_pb2 as _containerd_services_images_v1_images_pb2
from google.protobuf import empty_pb2 as _google_protobuf_empty_pb2

class ImagesStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    Get: grpc.aio.UnaryUnaryMultiCallable[_containerd_services_images_v1_images_pb2.GetImageRequest, _containerd_services_images_v1_images_pb2.GetImageResponse]
    List: grpc.aio.UnaryUnaryMultiCallable[_containerd_services_images_v1_images_pb2.ListImagesRequest, _containerd_services_images_v1_images_pb2.ListImagesResponse]
    Create: grpc.aio.UnaryUnaryMultiCallable[_containerd_services_images_v1_images_pb2.CreateImageRequest, _containerd_services_images_v1_images_pb2.CreateImageResponse]
    Update: grpc.aio.UnaryUnaryMultiCallable[_containerd_services_images_v1_images_pb2.UpdateImageRequest, _containerd_services_images_v1_images_pb2.UpdateImageResponse]
    Delete: grpc.aio.UnaryUnaryMultiCallable[_containerd_services_images_v1_images_pb2.DeleteImageRequest, _google_protobuf_empty_pb2.Empty]

class ImagesServicer:
    async def Get(self, request: _containerd_services_images_v1_images_pb2.GetImageRequest, context: grpc.aio.ServicerContext[_containerd_services_images_v1_images_pb2.GetImageRequest, _containerd_services_images_v1_images_pb2.GetImageResponse], /) -> _containerd_services_images_v1_images_pb2.GetImageResponse: ...
    async def List(self, request: _containerd_services_images_v1_images_pb2.ListImagesRequest, context: grpc.aio.ServicerContext[_containerd_services_images_v1_images_pb2.ListImagesRequest, _containerd_services_images_v1_images_pb2.ListImagesResponse], /) -> _containerd_services_images_v1_images_pb2.ListImagesResponse: ...
    async def Create(self, request: _containerd_services_images_v1_images_pb2.CreateImageRequest, context: grpc.aio.ServicerContext[_containerd_services_images_v1_images_pb2.CreateImageRequest, _containerd_services_images_v1_images_pb2.CreateImageResponse], /) -> _containerd_services_images_v1_images_pb2.CreateImageResponse: ...
    async def Update(self, request: _containerd_services_images_v1_images_pb2.UpdateImageRequest, context: grpc.aio.ServicerContext[_containerd_services_images_v1_images_pb2.UpdateImageRequest, _containerd_services_images_v1_images_pb2.UpdateImageResponse], /) -> _containerd_services_images_v1_images_pb2.UpdateImageResponse: ...
    async def Delete(self, request: _containerd_services_images_v1_images_pb2.DeleteImageRequest, context: grpc.aio.ServicerContext[_containerd_services_images_v1_images_pb2.DeleteImageRequest, _google_protobuf_empty_pb2.Empty], /) -> _google_protobuf_empty_pb2.Empty: ...

def add_ImagesServicer_to_server(servicer: ImagesServicer, server: grpc.aio.Server) -> None: ...

