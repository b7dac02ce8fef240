"""The verbs for what is deployed: functions, their instances, scaling and credentials.

Sorting and paging are done here; deciding what a deploy changes is `agent/deployments`'.
"""

from __future__ import annotations

import asyncio

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.control.convert import (
    deployed_to_proto,
    function_to_proto,
    instance_to_proto,
    spec_from_proto,
    version_to_proto,
)
from agent.control.credentials import given_credentials
from agent.control.verbs import Verbs
from agent.errors import InvalidSpec, Problem

PAGE_SIZE = 1000
# gRPC clients refuse answers over 4 MB by default; a page ends well before that.
PAGE_BYTES = 2 << 20


class DeployVerbs(Verbs):
    """What is deployed."""

    async def deploy(self, request: pb.DeployRequest) -> pb.DeployResponse:
        """Check the spec and deploy it."""
        if request.WhichOneof("what") == "group":
            raise NotImplementedError("Deploy of a group")
        if request.WhichOneof("what") is None:
            raise InvalidSpec([Problem("spec", "is missing")])
        spec = spec_from_proto(request.spec)
        return deployed_to_proto(await self.node.deploy(spec, wait=request.wait))

    async def remove(self, request: pb.RemoveRequest) -> pb.RemoveResponse:
        """Remove a function."""
        await self.node.remove(named(request.name), force=request.force)
        return pb.RemoveResponse()

    async def get(self, request: pb.GetRequest) -> pb.Function:
        """Read a function."""
        return await function_to_proto(await self.node.get(named(request.name), request.qualifier))

    async def list_functions(self, request: pb.ListRequest) -> pb.ListResponse:
        """List functions by name, a page at a time; the token is the page's last name."""
        size = page_size(request.page_size)
        views = sorted(await self.node.functions(), key=lambda view: view.name)
        rest = [view for view in views if view.name > request.page_token]
        page = pb.ListResponse()
        sized = 0
        for view in rest[:size]:
            message = pb.Function(name=view.name, latest=version_to_proto(view.latest))
            sized += message.ByteSize()
            if sized > PAGE_BYTES and page.functions:
                break
            page.functions.append(message)
            await asyncio.sleep(0)  # a spec takes a quarter of a millisecond: let others in between
        if len(page.functions) < len(rest):
            page.next_page_token = page.functions[-1].name
        return page

    async def list_instances(self, request: pb.ListInstancesRequest) -> pb.ListInstancesResponse:
        """List instances by id."""
        views = sorted(await self.node.instances(request.function), key=lambda view: view.id)
        return pb.ListInstancesResponse(instances=[instance_to_proto(view) for view in views])

    async def set_scaling(self, request: pb.SetScalingRequest) -> pb.FunctionVersion:
        """Not built in this release."""
        raise NotImplementedError

    async def set_credentials(self, request: pb.SetCredentialsRequest) -> pb.SetCredentialsResponse:
        """Keep credentials for a registry; those for functions are not built in this release."""
        if request.WhichOneof("target") == "function":
            raise NotImplementedError("SetCredentials for a function")
        if request.WhichOneof("target") is None:
            raise InvalidSpec([Problem("registry", "is missing")])
        host, registry, until = given_credentials(request)
        await self.node.set_registry_credentials(host, registry, until)
        return pb.SetCredentialsResponse()


def named(name: str, field: str = "name") -> str:
    """Return a name that a request must give; raises InvalidSpec when it is empty."""
    if not name:
        raise InvalidSpec([Problem(field, "is missing")])
    return name


def page_size(asked: int) -> int:
    """Return how many entries a page may have; raises InvalidSpec above the limit."""
    if asked > PAGE_SIZE:
        raise InvalidSpec([Problem("page_size", f"is {asked}; at most {PAGE_SIZE}")])
    return asked or PAGE_SIZE
