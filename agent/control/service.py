"""The whole service `worker.v1.Worker`, put together from its groups of verbs.

`server.py` serves it on the private sockets behind the pump.
"""

from __future__ import annotations

from agent._pb.worker.v1.worker_pb2_grpc import WorkerServicer
from agent.control.calling import CallVerbs
from agent.control.deploying import DeployVerbs
from agent.control.images import ImageVerbs
from agent.control.node_state import NodeVerbs
from agent.control.verbs import streaming, unary
from agent.control.watching import WatchVerbs

NAME = "worker.v1.Worker"

READONLY = frozenset(
    {
        "Get",
        "List",
        "ListInstances",
        "ListImages",
        "InspectImage",
        "GetCall",
        "StreamLogs",
        "WatchEvents",
        "GetNode",
        "WatchCapacity",
    }
)
"""What the read-only socket admits; worker.proto marks the same calls."""


class WorkerService(DeployVerbs, ImageVerbs, CallVerbs, WatchVerbs, NodeVerbs, WorkerServicer):
    """Every RPC of worker.proto."""

    Deploy = unary("Deploy", DeployVerbs.deploy)
    Remove = unary("Remove", DeployVerbs.remove)
    Get = unary("Get", DeployVerbs.get)
    List = unary("List", DeployVerbs.list_functions)
    ListInstances = unary("ListInstances", DeployVerbs.list_instances)
    SetScaling = unary("SetScaling", DeployVerbs.set_scaling)
    SetCredentials = unary("SetCredentials", DeployVerbs.set_credentials)
    PrepareImage = streaming("PrepareImage", ImageVerbs.prepare_image)
    ImportImage = unary("ImportImage", ImageVerbs.import_image)
    ListImages = unary("ListImages", ImageVerbs.list_images)
    InspectImage = unary("InspectImage", ImageVerbs.inspect_image)
    RemoveImage = unary("RemoveImage", ImageVerbs.remove_image)
    CollectGarbage = unary("CollectGarbage", ImageVerbs.collect_garbage)
    AccelerateImage = unary("AccelerateImage", ImageVerbs.accelerate_image)
    Invoke = unary("Invoke", CallVerbs.invoke)
    RunJob = unary("RunJob", CallVerbs.run_job)
    GetCall = unary("GetCall", CallVerbs.get_call)
    StopCall = unary("StopCall", CallVerbs.stop_call)
    StreamLogs = streaming("StreamLogs", WatchVerbs.stream_logs)
    WatchEvents = streaming("WatchEvents", WatchVerbs.watch_events)
    WatchCapacity = streaming("WatchCapacity", WatchVerbs.watch_capacity)
    GetNode = unary("GetNode", NodeVerbs.get_node)
    Drain = unary("Drain", NodeVerbs.drain)
    Undrain = unary("Undrain", NodeVerbs.undrain)
    Reload = unary("Reload", NodeVerbs.reload)
    PullUsage = unary("PullUsage", NodeVerbs.pull_usage)
    AckUsage = unary("AckUsage", NodeVerbs.ack_usage)
