"""The only place that knows all dialects: from a function version to its contract.

Called at deploy and at load, never per call. Adding a platform means a module beside this one and a
line here.
"""

from __future__ import annotations

from agent.contracts.base import Contract, NodeFacts
from agent.contracts.fc import Fc
from agent.contracts.fc2 import Fc2
from agent.contracts.scf_job import ScfJob
from agent.contracts.scf_web import ScfWeb
from agent.contracts.vercel import Vercel
from agent.errors import InvalidSpec, Problem
from agent.model.records import FunctionVersion

DIALECTS: dict[str, type[Contract]] = {
    "fc": Fc,
    "fc2": Fc2,
    "scf-web": ScfWeb,
    "scf-job": ScfJob,
    "vercel": Vercel,
}


def bind(version: FunctionVersion, node: NodeFacts) -> Contract:
    """Return the contract of one version; raises InvalidSpec when it names none we know."""
    name = version.spec.contract
    dialect = DIALECTS.get(name)
    if dialect is None:
        known = ", ".join(DIALECTS)
        raise InvalidSpec([Problem("contract", f"{name!r} is not one of {known}")])
    return dialect(version, node)
