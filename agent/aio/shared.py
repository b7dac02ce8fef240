"""One run of something for all who want the same at the same time.

Who comes first starts it, later ones join it and are told what they missed. Whoever leaves, by
cancellation or deadline, leaves it running for the rest; the last one to leave ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from agent.aio import tasks

T = TypeVar("T")
S = TypeVar("S")

Told = Callable[[S], None]


class _Run(Generic[T, S]):
    """A run under way: its task, who listens, and the last step of each kind."""

    def __init__(self) -> None:
        self.task: asyncio.Task[T | BaseException]
        self.waiting = 0
        self.listeners: list[Told[S]] = []
        self.last: dict[Hashable, S] = {}


class SharedRuns(Generic[T, S]):
    """Runs by key. `kind` says which earlier step a step replaces, for those who join late."""

    def __init__(self, kind: Callable[[S], Hashable]) -> None:
        self._kind = kind
        self._runs: dict[Hashable, _Run[T, S]] = {}

    def __len__(self) -> int:
        return len(self._runs)

    async def join(
        self,
        key: Hashable,
        name: str,
        start: Callable[[Told[S]], Coroutine[Any, Any, T]],
        told: Told[S] | None = None,
    ) -> T:
        """Return what the run under `key` returns, or raise what it raises; `start` makes it.

        `told` gets the steps that `start`'s own argument is called with, on the loop, the last of
        each kind at once if the run has begun before.
        """
        run = self._runs.get(key)
        if run is None:
            run = self._begin(key, name, start)
        if told is not None:
            for step in list(run.last.values()):
                told(step)
            run.listeners.append(told)
        run.waiting += 1
        try:
            await asyncio.wait({run.task})
        finally:
            run.waiting -= 1
            if told is not None:
                run.listeners.remove(told)
            if not run.waiting and not run.task.done():
                self._runs.pop(key, None)  # whoever comes now starts anew
                await tasks.stop(run.task)
        result = run.task.result()
        if isinstance(result, BaseException):
            raise result
        return result

    def _begin(
        self, key: Hashable, name: str, start: Callable[[Told[S]], Coroutine[Any, Any, T]]
    ) -> _Run[T, S]:
        run: _Run[T, S] = _Run()

        def tell(step: S) -> None:
            run.last[self._kind(step)] = step
            for listener in tuple(run.listeners):
                listener(step)

        async def work() -> T | BaseException:
            try:
                return await start(tell)
            except Exception as error:  # theirs who wait, not the log's
                return error
            finally:
                if self._runs.get(key) is run:
                    del self._runs[key]

        self._runs[key] = run
        run.task = tasks.spawn(name, work())
        return run
