"""`kindling supervise`: keeps containerd and the worker running inside rootlesskit's namespaces.

One thread, standard library only. It holds the listening sockets, so that a worker may die without
a caller noticing; it restarts what dies, with back-off; SIGHUP makes it replace the worker, and its
own code in place, once a new worker is prepared; SIGTERM and SIGINT stop everything in order.
Functions and their shims outlive containerd and the worker, never this process. Its start is in
`mounts` and `sockets`, its children in `child`, `worker` and `daemon`, a reload's phases in `swap`,
its end in `ending`; its parent outside is `parent`.
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
from pathlib import Path
from typing import Any

from agent.errors import AgentError
from agent.linux import prctl
from agent.rootless import (
    cgroup,
    child,
    containerd_config,
    ending,
    installed,
    leftovers,
    mounts,
    notify,
    outcome,
    pids,
    protocol,
    replacing,
    settings,
    signals,
    sockets,
)
from agent.rootless.daemon import Daemon
from agent.rootless.engines import Engines
from agent.rootless.grpc_probe import serves
from agent.rootless.settings import House
from agent.rootless.swap import LIMITS_S, Phase, Swap
from agent.rootless.worker import Worker
from agent.rootless.workers import Workers

WORKER_VARIABLE = "KINDLING_WORKER"
_CONTAINERD_READY_S = 30.0
_WORKER_READY_S = 60.0
# glibc gives every thread an arena of its own, of which each keeps what it once had: 1.2 MB of a
# worker, whose threads have one lock anyway.
_ARENAS = "2"
_PROBE_S = 0.01
_CONTAINERD_STOP_S = 5.0
_STOP_LOOK_S = 0.05
# A daemon that dies this often without ever having worked will not work next time either.
_HOPELESS_AFTER = 5


class Supervisor:
    """The state of one house and the loop over it."""

    def __init__(
        self,
        house: House,
        layout: cgroup.CgroupLayout,
        held: sockets.OpenSockets,
        passing: sockets.OpenSockets,
    ) -> None:
        self.house = house
        self.layout = layout
        self.held = held
        self.containerd = Daemon("containerd", _CONTAINERD_READY_S)
        self.worker = Daemon("worker", _WORKER_READY_S)
        self.engines = Engines(house, self._environment, self._write_pids)
        self.process: Worker | None = None
        """The worker's pipes."""
        self.successor: Worker | None = None
        """The worker that a reload prepares."""
        self.lost = ""
        """Why the successor is none any more."""
        self.swap = Swap()
        self.trial = 0
        self.wanted = held
        """The sockets of the configuration that a reload is to take."""
        self.hopeless = False
        self.inbox = signals.Inbox()
        self._selector = selectors.DefaultSelector()
        self.workers = Workers(self._selector, passing, self._heard)
        self._selector.register(self.inbox.reader, selectors.EVENT_READ, self.inbox.drain)

    # The life of the house

    def run(self) -> int:
        """Run until stopped; return the exit status."""
        notify.send(str(self.house.notify), notify.LISTENING)
        while True:
            now = time.monotonic()
            self._step(now)
            if self.hopeless or self.inbox.wants_stop():
                self._stop()
                return 1 if self.hopeless else 0
            idle = self.swap.phase is Phase.IDLE and self.successor is None
            if self.inbox.asked or (self.swap.again and idle):
                self.inbox.asked.clear()
                self.swap.again = not idle
                if idle:
                    self._begin_reload(now)
            self._wait(self._next_event_s() - time.monotonic())

    def resume(self, state: dict[str, Any]) -> None:
        """Go on in the new code with what the process had before its exec."""
        now = time.monotonic()
        self.containerd.pid = state["containerd"]
        self.workers.retiring = {int(pid): until for pid, until in state["retiring"].items()}
        self.engines.resume(state.get("engines", {}), now)
        if self.containerd.pid:
            # Whether it works is found out by probing, as for a new one.
            self.containerd.started(self.containerd.pid, now)
            self.containerd.was_ready = True
        self.worker.was_ready = True
        if state["worker"]:
            self.process = self.workers.restored(state["worker"])
            self.worker.started(self.process.pid, now)
            self.worker.became_ready(now)
        if state["successor"]:
            self.successor = self.workers.restored(state["successor"])
        self.swap.number, self.swap.again = state["reload"], state["again"]
        self.swap.resume(now)
        if self.process is None:
            self._go(now)
        else:
            self.process.tell(protocol.HAND_OVER)

    def _step(self, now: float) -> None:
        self._reap(now)
        if self.containerd.due(now):
            self._start_containerd(now)
        if self.containerd.waiting:
            if serves(self.house.containerd_socket):
                self.containerd.became_ready(now)
                notify.say("supervise", f"containerd serves after {self.containerd.age_ms(now)} ms")
            elif self.containerd.late(now):
                self._kill_late(self.containerd)
        self.engines.step(now)
        if self.containerd.ready and self.worker.due(now):
            self._start_worker(now)
        if self.worker.waiting and self.worker.late(now):
            self._kill_late(self.worker)
        if self.swap.late(now):
            self._late_reload(now)
        self.workers.kill_overdue(now)

    def _next_event_s(self) -> float:
        times = [*self.containerd.timers(), *self.engines.timers(), *self.workers.retiring.values()]
        if self.containerd.waiting:
            # Its socket is the only sign of life it gives.
            times.append(time.monotonic() + _PROBE_S)
        if self.containerd.ready or self.worker.pid:
            # A worker that is due waits for containerd.
            times += self.worker.timers()
        if self.swap.until is not None:
            times.append(self.swap.until)
        return min(times, default=time.monotonic() + 3600)

    def _wait(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(max(timeout_s, 0)):
            callback: Callable[[], None] = key.data
            callback()

    # Starting

    def _start_containerd(self, now: float) -> None:
        argv = containerd_config.prepare(self.house)
        # It must not outlive us: its database would stay locked. Its shims do outlive it.
        pid = child.start(argv, self._environment(), dies_with_parent=signal.SIGKILL)
        self.containerd.started(pid, now)
        notify.say("supervise", f"containerd started (pid {pid})")
        self._write_pids()

    def _start_worker(self, now: float) -> None:
        self.process = self._start(worker_command(), self.house.config, self.held)
        self.worker.started(self.process.pid, now)
        notify.say("supervise", f"worker started (pid {self.process.pid})")
        self._write_pids()

    def _start(self, command: list[str], config: Path, held: sockets.OpenSockets) -> Worker:
        environment = {"MALLOC_ARENA_MAX": _ARENAS, **self._environment()}
        return self.workers.start(command, environment, config, held)

    def _environment(self) -> dict[str, str]:
        ours = (replacing.STATE_VARIABLE, WORKER_VARIABLE, mounts.PLACES_VARIABLE)
        return {name: value for name, value in os.environ.items() if name not in ours}

    def _heard(self, worker: Worker, word: str, text: str) -> None:
        now = time.monotonic()
        if word == protocol.PREPARED:
            if worker is self.process:
                worker.tell(protocol.GO)
            elif worker is self.successor and self.swap.phase is Phase.PREPARING:
                self._try_own_code(now)
        elif word == protocol.READY and worker is self.process and self.worker.waiting:
            self._became_ready(now)
        elif word == protocol.HANDED_OVER and worker is self.process:
            # It serves no more, whatever has become of the reload: without a successor, the
            # worker is due.
            self.process, self.worker.pid = None, 0
            self.workers.retire(worker, now)
            if self.swap.phase is Phase.HANDING_OVER:
                self._go(now)
        elif word == protocol.FAILED and worker is self.successor:
            self._lost_successor(f"the new worker: {text}")
        elif word in (protocol.ENGINE, protocol.STUCK, protocol.REST):
            self.engines.heard(word, text)
        elif word == protocol.RELOAD:
            notify.send(str(self.house.notify), notify.RELOAD)

    def _became_ready(self, now: float) -> None:
        self.worker.became_ready(now)
        notify.say("supervise", f"worker is ready after {self.worker.age_ms(now)} ms")
        notify.send(str(self.house.notify), notify.READY, f"SUPERVISE_PID={os.getpid()}")
        if self.swap.phase is Phase.STARTING:
            self._end_reload()

    # Ending

    def _reap(self, now: float) -> None:
        """Note every child's end. None of their pids is used any more once this has seen it."""
        if self.successor is not None:
            self.workers.hear(self.successor)  # its last words say why it ends
        tried: int | None = None
        for pid, status in ending.reap():
            self.workers.retiring.pop(pid, None)
            self.engines.ended(pid, status, now)
            if pid == self.containerd.pid:
                self._note_end(self.containerd, status, now)
            elif pid == self.worker.pid:
                self._worker_ended(status, now)
            elif self.successor is not None and pid == self.successor.pid:
                self.workers.forget(self.successor)
                self.successor = None
                how = child.how_ended(status)
                self._lost_successor(
                    f"the new worker ended with {how}: its last words are in the log"
                )
            elif pid == self.trial:
                tried = status
        if tried is not None:  # last: what it execs knows of every end
            self._tried(tried)

    def _worker_ended(self, status: int, now: float) -> None:
        worker = self.process
        if worker is None:
            return
        self.workers.hear(worker)  # its last words
        if self.process is not worker:  # it had handed over
            self.workers.retiring.pop(worker.pid, None)
            return
        self.workers.forget(worker)
        self.process = None
        self._note_end(self.worker, status, now)
        if self.swap.phase is Phase.HANDING_OVER:
            self._go(now)
        elif self.swap.phase is Phase.STARTING:
            how = child.how_ended(status)
            self._fail_reload(f"the new worker ended with {how} after it had taken over")

    def _note_end(self, daemon: Daemon, status: int, now: float) -> None:
        delay_s = daemon.ended(now)
        how = child.how_ended(status)
        self._write_pids()
        if not daemon.was_ready and daemon.backoff.failures >= _HOPELESS_AFTER:
            text = f"{daemon.name} ended {_HOPELESS_AFTER} times ({how}): giving up"
            notify.say("supervise", text)
            self.hopeless = True
            return
        when = f"in {delay_s:g} s" if delay_s else "at once"
        notify.say("supervise", f"{daemon.name} ended with {how}: starting it again {when}")

    def _kill_late(self, daemon: Daemon) -> None:
        notify.say(
            "supervise", f"{daemon.name} was not ready in {daemon.ready_within_s:g} s: killed"
        )
        daemon.give_up_waiting()
        ending.kill(daemon.pid, signal.SIGKILL)

    def _stop(self) -> None:
        self.inbox.asked.clear()
        self.swap.give_up()  # no trial's end replaces us any more
        began = time.monotonic()
        notify.say("supervise", "stopping: worker first, then containerd, then what is left")
        for pid in (self.trial, self.successor.pid if self.successor is not None else 0):
            if pid:
                ending.kill(pid, signal.SIGKILL)
        for pid in self.workers.retiring:
            ending.kill(pid, signal.SIGTERM)
        if self.worker.pid:
            self._end(self.worker, self.house.stop_timeout_s)
        until = began + self.house.stop_timeout_s
        while self.workers.retiring and time.monotonic() < until and not self.inbox.asked:
            self._reap(time.monotonic())
            self._wait(_STOP_LOOK_S)
        for _, descriptor in self.held.values():
            os.close(descriptor)
        self.workers.close()
        if self.containerd.pid:
            self._end(self.containerd, _CONTAINERD_STOP_S)
        ending.end_rest(self.house, self.layout)
        ending.clear(self.house)
        notify.say("supervise", f"stopped in {time.monotonic() - began:.1f} s")

    def _end(self, daemon: Daemon, within_s: float) -> None:
        """TERM a daemon and wait for it; a second signal from outside cuts the wait short."""
        pid = daemon.pid  # a worker that hands over meanwhile is no daemon any more
        ending.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + within_s
        while ending.is_child(pid):
            now = time.monotonic()
            if now >= deadline or self.inbox.asked:
                notify.say("supervise", f"{daemon.name} did not end in its time: killed")
                self.inbox.asked.clear()
                ending.kill(pid, signal.SIGKILL)
                deadline = now + within_s
            self._wait(deadline - now)
        self.workers.retiring.pop(pid, None)

    # Reloading: see `swap` for the phases

    def _begin_reload(self, now: float) -> None:
        """Prepare a worker of the code that is installed, beside the one that serves."""
        self.swap.number, self.lost = outcome.read(self.house.run).number, ""
        self.swap.advance(now)
        try:
            config = self._take_config()
            self.wanted = sockets.open_all(settings.read(config).doors, self.held)
            command = worker_command(installed.python())
            self.successor = self._start(command, config, self.wanted)
        except (AgentError, OSError, ValueError, KeyError) as error:
            self._fail_reload(str(error))
            return
        notify.say("supervise", f"a new worker (pid {self.successor.pid}) prepares")

    def _take_config(self) -> Path:
        fresh = self.house.run / settings.NEXT_CONFIG_NAME
        return fresh.replace(self._trying) if fresh.exists() else self.house.config

    @property
    def _trying(self) -> Path:
        return self.house.run / settings.TRYING_CONFIG_NAME

    def _try_own_code(self, now: float) -> None:
        """See whether the installed code starts at all, before this process becomes it."""
        self.swap.advance(now)
        command = [*supervise_command(self.house.config), "--trial"]
        try:
            self.trial = child.start(command, self._environment())
        except OSError as error:
            self._fail_reload(f"the installed supervisor cannot be tried: {error}")

    def _tried(self, status: int) -> None:
        self.trial = 0
        if self.swap.phase is not Phase.TRYING:
            return
        if status != 0:
            self._fail_reload(f"the installed supervisor does not start: {child.how_ended(status)}")
        elif self.inbox.blocked():
            self._replace_self()

    def _replace_self(self) -> None:
        """Exec the installed code with the same sockets and children."""
        command = supervise_command(self.house.config)
        workers = [one for one in (self.process, self.successor) if one is not None]
        descriptors = [fd for _, fd in (*self.wanted.values(), *self.workers.passing.values())]
        descriptors += [fd for one in workers for fd in one.save()[1:] if fd >= 0]
        notify.say("supervise", "replacing myself with the installed code")
        try:
            with replacing.put_in_force(self._trying, self.house.config):
                replacing.execute(command, self._state(), descriptors)
        except OSError as error:
            signals.unblock()
            self._fail_reload(f"the installed supervisor cannot be started: {error}")

    def _state(self) -> dict[str, Any]:
        return {
            "held": self.wanted,
            "left": sockets.paths_left(self.held, self.wanted),
            "passing": self.workers.passing,
            "containerd": self.containerd.pid,
            "engines": self.engines.pids,
            "worker": self.process.save() if self.process is not None else None,
            "successor": self.successor.save() if self.successor is not None else None,
            "retiring": self.workers.retiring,
            "reload": self.swap.number,
            "again": self.swap.again or bool(self.inbox.asked),
        }

    def _go(self, now: float) -> None:
        """Make the successor the worker."""
        self.swap.advance(now)
        self.process, self.successor = self.successor, None
        if self.process is None:
            self._fail_reload(self.lost or "the new worker has ended")
            return
        self.worker.started(self.process.pid, now)
        self.process.tell(protocol.GO)
        self._write_pids()

    def _lost_successor(self, reason: str) -> None:
        self.lost = self.lost or reason
        # The worker before makes room all the same, and within a limit: `_go` then ends the reload.
        if self.swap.phase is not Phase.HANDING_OVER:
            self._fail_reload(self.lost)

    def _late_reload(self, now: float) -> None:
        phase = self.swap.phase
        if phase is Phase.HANDING_OVER and self.process is not None:
            # It neither serves nor lets another one: what it holds is lost.
            notify.say("supervise", f"worker {self.process.pid} does not hand over: killed")
            self.swap.until = now + LIMITS_S[phase]
            ending.kill(self.process.pid, signal.SIGKILL)
        else:
            self._fail_reload(f"{phase.value} took longer than {LIMITS_S[phase]:g} s")

    def _fail_reload(self, reason: str) -> None:
        """Give a reload up and say why; before the hand-over nothing has changed."""
        if self.swap.phase is Phase.IDLE:
            return
        reason = f"{reason}; {self.swap.after_failure}"
        notify.say("supervise", f"reload failed: {reason}")
        outcome.end(self.house.run, self.swap.number, reason)
        self._trying.unlink(missing_ok=True)
        sockets.close_others(self.wanted, self.held)
        self.wanted = self.held
        self.swap.give_up()
        for pid in (self.trial, self.successor.pid if self.successor is not None else 0):
            if pid:
                ending.kill(pid, signal.SIGKILL)  # its end is seen by `_reap`

    def _end_reload(self) -> None:
        self.swap.give_up()
        outcome.end(self.house.run, self.swap.number)
        notify.send(str(self.house.notify), notify.RELOADED)

    def _write_pids(self) -> None:
        own = {"containerd": self.containerd.pid, "worker": self.worker.pid}
        pids.write(self.house.run, {**own, **self.engines.pids})


def supervise_command(config: Path) -> list[str]:
    """Return the argv of a supervisor for this configuration, of the code that is installed."""
    # -P: a directory `agent` where somebody happens to stand is not our code.
    return [installed.python(), "-P", "-m", "agent.cli.main", "supervise", str(config)]


def worker_command(python: str = sys.executable) -> list[str]:
    """Return the argv of a worker of this interpreter's code; tests name another program."""
    named = os.environ.get(WORKER_VARIABLE)
    if named:
        return [str(part) for part in json.loads(named)]
    return [python, "-P", "-m", "agent.cli.main", "worker"]


def _start(house: House) -> Supervisor:
    state = replacing.take_state()
    layout = cgroup.load(house.run / settings.CGROUP_NAME)
    mounts.prepare(house, layout, os.environ.get(mounts.PLACES_VARIABLE, "{}"))
    if state is None:
        leftovers.clear_directory(house.run, ending.KEPT_IN_RUN)
        held = sockets.open_all(house.doors, {})
        return Supervisor(house, layout, held, sockets.passing_pair())
    held, passing = (replacing.inherited(state[name]) for name in ("held", "passing"))
    sockets.unlink(state.get("left", ()))
    supervisor = Supervisor(house, layout, held, passing)
    supervisor.resume(state)
    return supervisor


def main(arguments: list[str]) -> int:
    """Entry of `kindling supervise CONFIG [--trial]`; returns the exit status."""
    if len(arguments) not in (1, 2) or arguments[1:] not in ([], ["--trial"]):
        notify.say("supervise", "is started by 'kindling run', with one configuration file")
        return 2
    try:
        house = settings.read(Path(arguments[0]))
        if arguments[1:]:
            return 0
        prctl.become_subreaper()
        # Callers' connections count; the usual soft limit of 1024 is for programs with select().
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        prctl.set_process_name("kindling-house")
        return _start(house).run()
    except (AgentError, OSError, ValueError, KeyError) as error:
        notify.say("supervise", f"cannot go on: {error}")
        return 1
