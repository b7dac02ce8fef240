"""`kindling supervise`: keeps containerd and the worker running inside rootlesskit's namespaces.

One thread, standard library only. It holds the listening sockets, so that a worker may die without
a caller noticing; it restarts what dies, with back-off; SIGHUP makes it replace its own code in
place and the worker with it; SIGTERM and SIGINT stop everything in order. Functions and their shims
outlive containerd and the worker, never this process. Its start is in `mounts` and `sockets`, its
children in `child` and `daemon`, its end in `ending`; its parent outside is `parent`.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from agent.errors import AgentError
from agent.rootless import (
    cgroup,
    child,
    containerd_config,
    ending,
    installed,
    kernel,
    leftovers,
    mounts,
    notice,
    settings,
    sockets,
)
from agent.rootless.daemon import Daemon
from agent.rootless.hello import serves
from agent.rootless.settings import House
from agent.rootless.signals import Inbox

STATE_VARIABLE = "KINDLING_SUPERVISE_STATE"
WORKER_VARIABLE = "KINDLING_WORKER"
_CONTAINERD_READY_S = 30.0
_WORKER_READY_S = 60.0
_PROBE_S = 0.01
_CONTAINERD_STOP_S = 5.0
_TRIAL_S = 15.0
# How long a replaced worker may go on finishing calls it had accepted.
_RETIRE_S = 900.0
# A daemon that dies this often without ever having worked will not work next time either.
_HOPELESS_AFTER = 5


class Supervisor:
    """The state of one house and the loop over it."""

    def __init__(self, house: House, layout: cgroup.Layout, held: sockets.Held) -> None:
        self.house = house
        self.layout = layout
        self.held = held
        self.containerd = Daemon("containerd", _CONTAINERD_READY_S)
        self.worker = Daemon("worker", _WORKER_READY_S)
        self.retiring: dict[int, float] = {}
        self.notify_fd = -1
        self.hopeless = False
        self.inbox = Inbox()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.inbox.reader, selectors.EVENT_READ, self.inbox.drain)

    # The life of the house

    def run(self) -> int:
        """Run until stopped; return the exit status."""
        notice.send(str(self.house.notify), notice.LISTENING)
        while True:
            self._step(time.monotonic())
            if self.hopeless or self.inbox.wants_stop():
                self._stop()
                return 1 if self.hopeless else 0
            if self.inbox.asked:
                self.inbox.asked.clear()
                self._replace_self()
            self._wait(self._next_event_s() - time.monotonic())

    def resume(self, state: dict[str, Any]) -> None:
        """Take over what the process had before it replaced its own code, then swap the worker."""
        self.containerd.pid = state["containerd"]
        self.retiring = {int(pid): until for pid, until in state["retiring"].items()}
        if self.containerd.pid:
            # Whether it works is found out by probing, as for a new one.
            self.containerd.started(self.containerd.pid, time.monotonic())
            self.containerd.was_ready = True
        worker = state["worker"]
        if worker:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGUSR1)
            self.retiring[worker] = time.monotonic() + _RETIRE_S
            notice.say("supervise", f"worker {worker} finishes its calls and makes room")
        self.worker.was_ready = True

    def _step(self, now: float) -> None:
        self._reap(now)
        if self.containerd.due(now):
            self._start_containerd(now)
        if self.containerd.waiting:
            if serves(self.house.containerd_socket):
                self.containerd.became_ready(now)
                notice.say("supervise", f"containerd serves after {self.containerd.age_ms(now)} ms")
            elif self.containerd.late(now):
                self._kill_late(self.containerd)
        if self.containerd.ready and self.worker.due(now):
            self._start_worker(now)
        if self.worker.waiting and self.worker.late(now):
            self._kill_late(self.worker)
        for pid, until in list(self.retiring.items()):
            if now >= until:
                notice.say("supervise", f"worker {pid} still had calls after its time: killed")
                self.retiring[pid] = now + _RETIRE_S
                ending.kill(pid, signal.SIGKILL)

    def _next_event_s(self) -> float:
        times = [*self.containerd.timers(), *self.retiring.values()]
        if self.containerd.waiting:
            # Its socket is the only sign of life it gives.
            times.append(time.monotonic() + _PROBE_S)
        if self.containerd.ready or self.worker.pid:
            # A worker that is due waits for containerd.
            times += self.worker.timers()
        return min(times, default=time.monotonic() + 3600)

    def _wait(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(max(timeout_s, 0)):
            callback: Callable[[], None] = key.data
            callback()

    # Starting

    def _start_containerd(self, now: float) -> None:
        house = self.house
        state = house.containerd_socket.parent
        (state / "tmp").mkdir(parents=True, exist_ok=True)
        config = state / "config.toml"
        config.write_text(
            containerd_config.text(
                root=house.data / "containerd", state=state, socket=house.containerd_socket
            )
        )
        # A socket of a killed containerd would look like a living one that does not answer.
        house.containerd_socket.unlink(missing_ok=True)
        argv = [str(house.lib / "bin" / "containerd"), "--config", str(config), "--log-level=warn"]
        # It must not outlive us: its database would stay locked. Its shims do outlive it.
        pid = child.start(argv, self._environment(), dies_with_parent=signal.SIGKILL)
        self.containerd.started(pid, now)
        notice.say("supervise", f"containerd started (pid {pid})")
        self._write_pids()

    def _start_worker(self, now: float) -> None:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        descriptors = {name: descriptor for name, (_, descriptor) in self.held.items()}
        environment = self._environment() | {
            "KINDLING_CONFIG": str(self.house.config),
            "KINDLING_FDS": json.dumps(descriptors),
            "KINDLING_NOTIFY_FD": str(writer),
        }
        keep = [writer, *descriptors.values()]
        pid = child.start(worker_command(), environment, keep=keep, dies_with_parent=signal.SIGKILL)
        os.close(writer)
        self._forget_notify()
        self.notify_fd = reader
        self._selector.register(reader, selectors.EVENT_READ, self._read_notify)
        self.worker.started(pid, now)
        notice.say("supervise", f"worker started (pid {pid})")
        self._write_pids()

    def _environment(self) -> dict[str, str]:
        ours = (STATE_VARIABLE, WORKER_VARIABLE, mounts.PLACES_VARIABLE)
        return {name: value for name, value in os.environ.items() if name not in ours}

    def _read_notify(self) -> None:
        try:
            data = os.read(self.notify_fd, 4096)
        except BlockingIOError:
            return
        if not data:
            self._forget_notify()
        elif b"READY" in data.split() and self.worker.waiting:
            now = time.monotonic()
            self.worker.became_ready(now)
            notice.say("supervise", f"worker is ready after {self.worker.age_ms(now)} ms")
            notice.send(str(self.house.notify), notice.READY, f"SUPERVISE_PID={os.getpid()}")

    def _forget_notify(self) -> None:
        if self.notify_fd >= 0:
            self._selector.unregister(self.notify_fd)
            os.close(self.notify_fd)
            self.notify_fd = -1

    # Ending

    def _reap(self, now: float) -> None:
        for pid, status in ending.reap():
            self.retiring.pop(pid, None)
            for daemon in (self.containerd, self.worker):
                if pid == daemon.pid:
                    self._note_end(daemon, status, now)

    def _note_end(self, daemon: Daemon, status: int, now: float) -> None:
        delay_s = daemon.ended(now)
        how = child.how_ended(status)
        self._write_pids()
        if not daemon.was_ready and daemon.backoff.failures >= _HOPELESS_AFTER:
            notice.say(
                "supervise", f"{daemon.name} ended {_HOPELESS_AFTER} times ({how}): giving up"
            )
            self.hopeless = True
            return
        when = f"in {delay_s:g} s" if delay_s else "at once"
        notice.say("supervise", f"{daemon.name} ended with {how}: starting it again {when}")

    def _kill_late(self, daemon: Daemon) -> None:
        notice.say(
            "supervise", f"{daemon.name} was not ready in {daemon.ready_within_s:g} s: killed"
        )
        daemon.give_up_waiting()
        ending.kill(daemon.pid, signal.SIGKILL)

    def _stop(self) -> None:
        self.inbox.asked.clear()
        began = time.monotonic()
        notice.say("supervise", "stopping: worker first, then containerd, then what is left")
        for pid in self.retiring:
            ending.kill(pid, signal.SIGTERM)
        if self.worker.pid:
            self._end(self.worker, self.house.stop_timeout_s)
        for _, descriptor in self.held.values():
            os.close(descriptor)
        if self.containerd.pid:
            self._end(self.containerd, _CONTAINERD_STOP_S)
        ending.end_rest(self.house, self.layout)
        ending.clear(self.house)
        notice.say("supervise", f"stopped in {time.monotonic() - began:.1f} s")

    def _end(self, daemon: Daemon, within_s: float) -> None:
        """TERM a daemon and wait for it; a second signal from outside cuts the wait short."""
        ending.kill(daemon.pid, signal.SIGTERM)
        deadline = time.monotonic() + within_s
        while ending.is_child(daemon.pid):
            now = time.monotonic()
            if now >= deadline or self.inbox.asked:
                notice.say("supervise", f"{daemon.name} did not end in its time: killed")
                self.inbox.asked.clear()
                ending.kill(daemon.pid, signal.SIGKILL)
                deadline = now + within_s
            self._wait(deadline - now)

    # Replacing its own code

    def _replace_self(self) -> None:
        """Exec the installed code with the same sockets and children, if it starts at all."""
        command = supervise_command(self.house.config)
        if not self._trial([*command, "--trial"]):
            notice.say("supervise", "the installed code does not start: going on with what runs")
            return
        if not self.inbox.blocked():
            return
        state = {
            "held": self.held,
            "containerd": self.containerd.pid,
            "worker": self.worker.pid,
            "retiring": self.retiring,
        }
        for _, descriptor in self.held.values():
            os.set_inheritable(descriptor, True)
        os.environ[STATE_VARIABLE] = json.dumps(state)
        notice.say("supervise", "replacing myself with the installed code")
        # Signals wait, blocked: one between exec and the new handlers would end us.
        os.execv(command[0], command)

    def _trial(self, command: list[str]) -> bool:
        pid = child.start(command, self._environment())
        deadline = time.monotonic() + _TRIAL_S
        while time.monotonic() < deadline:
            for ended, status in ending.reap():
                if ended == pid:
                    return status == 0
                for daemon in (self.containerd, self.worker):
                    if ended == daemon.pid:
                        self._note_end(daemon, status, time.monotonic())
            self._wait(deadline - time.monotonic())
        ending.kill(pid, signal.SIGKILL)
        return False

    def _write_pids(self) -> None:
        path = self.house.run / settings.PIDS_NAME
        fresh = path.with_suffix(".new")
        pids = {
            "supervise": os.getpid(),
            "containerd": self.containerd.pid,
            "worker": self.worker.pid,
        }
        fresh.write_text(json.dumps(pids) + "\n")
        fresh.replace(path)


def supervise_command(config: Path) -> list[str]:
    """Return the argv of a supervisor for this configuration, of the code that is installed."""
    # -P: a directory `agent` where somebody happens to stand is not our code.
    return [installed.python(), "-P", "-m", "agent.cli.main", "supervise", str(config)]


def worker_command() -> list[str]:
    """Return the argv of the worker, of this process's own code; tests name another program."""
    named = os.environ.get(WORKER_VARIABLE)
    if named:
        return [str(part) for part in json.loads(named)]
    return [sys.executable, "-P", "-m", "agent.cli.main", "worker"]


def _start(house: House) -> Supervisor:
    state = json.loads(os.environ.pop(STATE_VARIABLE, "null"))
    layout = cgroup.load(house.run / settings.CGROUP_NAME)
    mounts.prepare(house, layout, os.environ.get(mounts.PLACES_VARIABLE, "{}"))
    if state is None:
        leftovers.clear_directory(house.run, ending.KEPT_IN_RUN)
        return Supervisor(house, layout, sockets.open_all(house.doors, {}))
    held = {name: (address, descriptor) for name, (address, descriptor) in state["held"].items()}
    for _, descriptor in held.values():
        os.set_inheritable(descriptor, False)
    try:
        held = sockets.open_all(house.doors, held)
    except AgentError as error:
        notice.say("supervise", f"{error}; the doors stay as they were")
    supervisor = Supervisor(house, layout, held)
    supervisor.resume(state)
    return supervisor


def main(arguments: list[str]) -> int:
    """Entry of `kindling supervise CONFIG [--trial]`; returns the exit status."""
    if len(arguments) not in (1, 2) or arguments[1:] not in ([], ["--trial"]):
        notice.say("supervise", "is started by 'kindling run', with one configuration file")
        return 2
    try:
        house = settings.read(Path(arguments[0]))
        if arguments[1:]:
            return 0
        kernel.become_subreaper()
        # Callers' connections count; the usual soft limit of 1024 is for programs with select().
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        kernel.set_process_name("kindling-house")
        return _start(house).run()
    except (AgentError, OSError, ValueError, KeyError) as error:
        notice.say("supervise", f"cannot go on: {error}")
        return 1
