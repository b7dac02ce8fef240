"""The verbs for what is deployed: functions, their instances, scaling and credentials.

Sorting and paging are done here; deciding what a deploy changes is `agent/deployments`'.
"""

from __future__ import annotations

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.aio.slices import Slices
from agent.control.convert import (
    deployed_to_proto,
    function_to_proto,
    instance_to_proto,
    spec_from_proto,
)
from agent.control.credentials import given_credentials
from agent.control.forms import VersionForms
from agent.control.node import Node
from agent.control.paging import names_after, page_size
from agent.control.verbs import Verbs
from agent.errors import InvalidSpec, Problem

# gRPC clients refuse answers over 4 MB by default. A page ends well before that, also because a
# message is serialized in one piece, a millisecond for half a megabyte.
PAGE_BYTES = 512 << 10


class DeployVerbs(Verbs):
    """What is deployed."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._forms = VersionForms()

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
        latest = {view.name: view.latest for view in await self.node.functions()}
        self._forms.forget_all_but(latest, len(latest))
        rest = names_after(latest, request.page_token)
        page, sized, slices = pb.ListResponse(), 0, Slices()
        for name in rest[:size]:
            entry = self._forms.entry(latest[name])
            sized += entry.ByteSize()
            if sized > PAGE_BYTES and page.functions:
                break
            page.functions.append(entry)
            await slices.pause()
        if len(page.functions) < len(rest):
            page.next_page_token = page.functions[-1].name
        return page

    async def list_instances(self, request: pb.ListInstancesRequest) -> pb.ListInstancesResponse:
        """List instances by id."""
        views = sorted(await self.node.instances(request.function), key=lambda view: view.id)
        page, slices = pb.ListInstancesResponse(), Slices()
        for view in views:
            page.instances.append(instance_to_proto(view))
            await slices.pause()
        return page

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
