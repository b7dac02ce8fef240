"""The scheduler's door: the gRPC service `worker.v1.Worker` on two unix sockets.

It converts between the wire and the model, says errors as status codes and details, and asks a
`Node` for everything else; it decides nothing itself. Start with `server.py`.
"""
