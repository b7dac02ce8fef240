"""What is deployed: functions, their versions, and where LATEST points. In memory, asked per call.

`find` is on the warm path: two dictionary look-ups. The store on disk is
`agent/store/functions.py`, the deploy that changes both is `agent/deployments/deploy.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from agent.calls.target import FunctionTarget
from agent.core.deploy import LATEST, pick
from agent.deployments.image_use import ImageUse
from agent.errors import NotFound

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


@dataclass(slots=True)
class DeployedFunction:
    """One function with the targets of its versions."""

    name: str
    latest: int
    versions: dict[int, FunctionTarget] = field(default_factory=dict)

    @property
    def current(self) -> FunctionTarget:
        """The target that LATEST stands for."""
        return self.versions[self.latest]

    def others(self) -> list[FunctionTarget]:
        """The targets that only their number reaches."""
        return [target for number, target in self.versions.items() if number != self.latest]


class Catalog:
    """All deployed functions by name."""

    def __init__(self) -> None:
        self._functions: dict[str, DeployedFunction] = {}
        self.generation = 0
        """Another number whenever `find` may answer differently than before."""
        self.image_use = ImageUse()

    def __repr__(self) -> str:
        return f"<Catalog {len(self._functions)} functions>"

    def find(self, name: str, qualifier: str) -> FunctionTarget:
        """Return the target of a call; raises NotFound naming what is there instead."""
        function = self.get(name)
        if not qualifier or qualifier == LATEST:
            return function.versions[function.latest]
        return function.versions[pick(name, function.versions, function.latest, qualifier)]

    def get(self, name: str) -> DeployedFunction:
        """Return a function; raises NotFound."""
        function = self._functions.get(name)
        if function is None:
            shown = name if NAME.fullmatch(name) else ascii(name[:64])
            raise NotFound(f"function {shown} is not deployed here; deploy it first")
        return function

    def has(self, name: str) -> bool:
        """Say whether a function is deployed."""
        return name in self._functions

    def target(self, key: tuple[str, int]) -> FunctionTarget | None:
        """Return the target of exactly this version, None if it is not here."""
        function = self._functions.get(key[0])
        return function.versions.get(key[1]) if function is not None else None

    def put(self, target: FunctionTarget, *, latest: bool) -> None:
        """Add a version; with `latest`, and as the first one, it becomes LATEST."""
        name, number = target.version.key
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = DeployedFunction(name, number)
        function.versions[number] = target
        if latest:
            function.latest = number
        self.generation += 1

    def remove(self, name: str) -> DeployedFunction:
        """Take a function out: calls no longer find it. Raises NotFound."""
        function = self.get(name)
        del self._functions[name]
        self.generation += 1
        return function

    def functions(self) -> list[DeployedFunction]:
        """Return all functions."""
        return list(self._functions.values())

    def targets(self) -> list[FunctionTarget]:
        """Return the targets of all versions of all functions."""
        return [t for function in self._functions.values() for t in function.versions.values()]

    def users(self) -> dict[str, list[str]]:
        """Return the names of the functions that have a version of an image, by its digest."""
        found: dict[str, set[str]] = {}
        for function in self._functions.values():
            for target in function.versions.values():
                if target.version.image is not None:
                    found.setdefault(target.version.image.digest, set()).add(function.name)
        return {digest: sorted(names) for digest, names in found.items()}

    def using(self, digest: str) -> list[str]:
        """Return the names of the functions that have a version of this image; see `users`."""
        return self.users().get(digest, [])

    def holds_layers(self, chain_id: str) -> bool:
        """Say whether some version or deploy needs these layers, under whatever name and digest."""
        return chain_id in self.image_use.layers or any(
            t.version.image is not None and t.version.image.chain_id == chain_id
            for t in self.targets()
        )
