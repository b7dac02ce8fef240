from collections.abc import AsyncIterator

import grpc
import grpc.aio
from google.protobuf import any_pb2 as _google_protobuf_any_pb2

class StreamingStub:
    def __init__(self, channel: grpc.aio.Channel) -> None: ...
    Stream: grpc.aio.StreamStreamMultiCallable[_google_protobuf_any_pb2.Any, _google_protobuf_any_pb2.Any]

class StreamingServicer:
    def Stream(self, request: AsyncIterator[_google_protobuf_any_pb2.Any], context: grpc.aio.ServicerContext[_google_protobuf_any_pb2.Any, _google_protobuf_any_pb2.Any], /) -> AsyncIterator[_google_protobuf_any_pb2.Any]: ...

def add_StreamingServicer_to_server(servicer: StreamingServicer, server: grpc.aio.Server) -> None: ...

