from collections.abc import AsyncIterator

import grpc
import grpc.aio
from agent._pb.containerd.services.transfer.v1 import transfer_pb2 as _containerd_services_transfer_v1_transfer_pb2
from google.protobuf import empty_pb2 as _google_protobuf_empty_pb2

class TransferStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    Transfer: grpc.aio.UnaryUnaryMultiCallable[_containerd_services_transfer_v1_transfer_pb2.TransferRequest, _google_protobuf_empty_pb2.Empty]

class TransferServicer:
    async def Transfer(self, request: _containerd_services_transfer_v1_transfer_pb2.TransferRequest, context: grpc.aio.ServicerContext[_containerd_services_transfer_v1_transfer_pb2.TransferRequest, _google_protobuf_empty_pb2.Empty], /) -> _google_protobuf_empty_pb2.Empty: ...

def add_TransferServicer_to_server(servicer: TransferServicer, server: grpc.aio.Server) -> None: ...

