"""The daemons that mount lazy images: started when first asked for, and kept alive from then on.

A worker asks for one by name (`protocol.ENGINE`) and says when one does not answer any more
(`protocol.STUCK`); one that has ever run is started with the house. They die with this process.
Each has a directory on tmpfs, which is also its DOCKER_CONFIG, and one below the data. What a dead
one leaves mounted is dead as well; the next one mounts it anew. What that means for functions is
the worker's to see.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from agent.linux import mount
from agent.rootless import child, ending, notify, protocol
from agent.rootless.daemon import Daemon
from agent.rootless.grpc_probe import serves
from agent.rootless.settings import (
    Engine,
    House,
    engine_authorities,
    engine_data,
    engine_directory,
    engine_set_aside,
    engine_socket,
    engine_state,
)

# What it mounted before it mounts again first, and a registry may be slow to answer for it.
_READY_S = 180.0
_PROBE_S = 0.05
CREDENTIALS_VARIABLE = "DOCKER_CONFIG"
AUTHORITIES_VARIABLE = "SSL_CERT_FILE"
# Debian's, of all authorities that the host believes.
HOSTS_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


class Engines:
    """All engines of one house."""

    def __init__(
        self, house: House, environment: Callable[[], dict[str, str]], changed: Callable[[], None]
    ) -> None:
        self._house = house
        self._environment = environment
        self._changed = changed
        self._engines = {engine.name: engine for engine in house.engines}
        self._daemons = {name: Daemon(name, _READY_S) for name in self._engines}
        self._resting: set[str] = set()
        self._wanted = {name for name in self._engines if engine_state(house.data, name).exists()}

    @property
    def pids(self) -> dict[str, int]:
        """Pids by name, 0 for one that does not run; those never wanted are left out."""
        return {name: self._daemons[name].pid for name in sorted(self._wanted)}

    def heard(self, word: str, name: str) -> None:
        """Have an engine run from now on; end one that is said not to answer.

        Who waits for files of its mounts gets an error then.
        """
        daemon = self._daemons.get(name)
        if daemon is None:
            return
        if word == protocol.REST:
            self._rest(daemon)
            return
        self._wanted.add(name)
        if word == protocol.STUCK and daemon.pid:
            notify.say("supervise", f"{name} does not answer any more: killed")
            ending.kill(daemon.pid, signal.SIGKILL)

    def _rest(self, daemon: Daemon) -> None:
        """End an engine that nothing needs any more, until it is asked for again."""
        self._wanted.discard(daemon.name)
        if daemon.pid:
            self._resting.add(daemon.name)
            ending.kill(daemon.pid, signal.SIGKILL)
        else:
            _set_aside(self._house, daemon.name)

    def step(self, now: float) -> None:
        """Start what is due, and see what has become ready."""
        for daemon in self._running():
            if daemon.due(now):
                self._start(self._engines[daemon.name], daemon, now)
            if daemon.waiting:
                if serves(engine_socket(self._house.run, daemon.name)):
                    daemon.became_ready(now)
                    took = daemon.age_ms(now)
                    notify.say("supervise", f"{daemon.name} serves after {took} ms")
                elif daemon.late(now):
                    daemon.give_up_waiting()
                    ending.kill(daemon.pid, signal.SIGKILL)

    def timers(self) -> list[float]:
        """Return the times at which something about them is due."""
        times = [at for daemon in self._running() for at in daemon.timers()]
        if any(daemon.waiting for daemon in self._running()):
            times.append(time.monotonic() + _PROBE_S)
        return times

    def ended(self, pid: int, status: int, now: float) -> None:
        """Note the end of a child, if it was one of them."""
        for daemon in self._daemons.values():
            if daemon.pid != pid:
                continue
            if daemon.name in self._resting:
                self._resting.discard(daemon.name)
                daemon.rested()
                _set_aside(self._house, daemon.name)
                notify.say("supervise", f"{daemon.name} rests: nothing needs it")
                self._changed()
            else:
                delay_s = daemon.ended(now)
                how = child.how_ended(status)
                when = f"in {delay_s:g} s" if delay_s else "at once"
                text = f"{daemon.name} ended with {how}: starting it again {when}"
                notify.say("supervise", text)
                self._changed()

    def resume(self, pids: Mapping[str, int], now: float) -> None:
        """Go on with what ran before an exec; whether one works is found out by probing."""
        for name, pid in pids.items():
            if name in self._daemons:
                self._wanted.add(name)
                if pid:
                    self._daemons[name].started(pid, now)
            elif pid:  # not in the configuration any more
                ending.kill(pid, signal.SIGTERM)

    def _running(self) -> list[Daemon]:
        return [self._daemons[name] for name in self._wanted]

    def _start(self, engine: Engine, daemon: Daemon, now: float) -> None:
        try:
            argv = _prepare(self._house, engine)
            directory = str(engine_directory(self._house.run, engine.name))
            environment = {**self._environment(), CREDENTIALS_VARIABLE: directory}
            environment[AUTHORITIES_VARIABLE] = str(_authorities(self._house, engine))
            # It must not outlive us: its database would stay locked.
            pid = child.start(argv, environment, dies_with_parent=signal.SIGKILL)
        except OSError as error:
            delay_s = daemon.ended(now)
            text = f"{engine.name} cannot be started ({error}): trying again in {delay_s:g} s"
            notify.say("supervise", text)
            return
        daemon.started(pid, now)
        notify.say("supervise", f"{engine.name} started (pid {pid})")
        self._changed()


def _authorities(house: House, engine: Engine) -> Path:
    """Write down whom an engine believes: the host's authorities, and the node's registries'.

    It reads them once, and for all registries alike. Raises OSError.
    """
    files = [Path(os.environ.get(AUTHORITIES_VARIABLE) or HOSTS_AUTHORITIES)]
    if house.registries is not None:
        files += sorted(house.registries.glob("*/*.crt"))
    path = engine_authorities(house.run, engine.name)
    path.write_bytes(b"\n".join(file.read_bytes() for file in files if file.is_file()))
    return path


def _set_aside(house: House, name: str) -> None:
    """Move what an engine has kept out of the way of the next one; the worker removes it.

    Its directory stays: it is mounted at the engine's fixed place.
    """
    data, aside = engine_data(house.data, name), engine_set_aside(house.data, name)
    if not data.is_dir():
        return
    try:
        aside.mkdir(mode=0o700, exist_ok=True)
        for kept in list(data.iterdir()):
            kept.rename(aside / f"{time.time_ns()}-{kept.name}")
    except OSError as error:
        notify.say("supervise", f"what {name} has kept stays where it is: {error}")


def _prepare(house: House, engine: Engine) -> list[str]:
    """Write an engine's configuration and make its places; return its argv. Raises OSError."""
    directory = engine_directory(house.run, engine.name)
    data = engine_data(house.data, engine.name)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    data.mkdir(mode=0o711, parents=True, exist_ok=True)
    if engine.place and not os.path.samefile(engine.place, data):
        mount.mount(data, engine.place, "", mount.BIND)
    config = directory / "engine.toml"
    config.write_text(engine.settings)
    socket = engine_socket(house.run, engine.name)
    socket.unlink(missing_ok=True)
    return [
        engine.program,
        *("--address", str(socket)),
        *("--root", str(data)),
        *("--config", str(config)),
        *("--log-level", "error"),
    ]
