"""The agent's outermost process: holds the locks, starts rootlesskit, sweeps before and after it.

`kindling run` turns itself into this once the configuration is checked, so that no more than the
standard library stays in memory. It lives in the host's namespaces, passes TERM and INT on exactly
once, tells systemd when the worker is ready, and leaves nothing behind. SIGHUP reloads: it goes
through `kindling run` again with everything held, then `supervise` replaces itself.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.errors import AgentError, FailedPrecondition
from agent.linux import mountinfo, prctl
from agent.rootless import (
    cgroup,
    child,
    installed,
    leftovers,
    lock,
    mounts,
    notify,
    outcome,
    settings,
    signals,
)
from agent.rootless.rootlesskit import command, root_is_shared
from agent.rootless.settings import House
from agent.rootless.signals import Inbox
from agent.rootless.supervise import supervise_command
from agent.rootless.sweep import sweep

HELD_VARIABLE = "KINDLING_HELD"
_SWEEP_S = 15.0
_TRIAL_S = 20.0
# On top of the worker's time to drain: containerd, sweeping, rootlesskit itself.
_STOP_MARGIN_S = 30.0
# timeout(1) and some shells send one signal twice, to the process and to its group.
_SAME_SIGNAL_S = 1.0
# Variables of our own parent that must not reach daemons which would obey them too.
_NOT_INHERITED = (HELD_VARIABLE, "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(slots=True)
class Inherited:
    """What survives a reload: configuration, locks, notify socket, rootlesskit (0: none).

    `listening` says that `supervise` obeys signals.
    """

    config: str
    config_file: str
    lock: int
    shared_locks: list[int]
    notify: int = -1
    rootlesskit: int = 0
    listening: bool = True
    refused: str = ""
    """Why the reload that this exec was for is not passed on."""

    def save(self) -> None:
        """Put it into the environment and let the descriptors through the next exec."""
        for descriptor in (self.lock, *self.shared_locks, self.notify):
            if descriptor >= 0:
                os.set_inheritable(descriptor, True)
        os.environ[HELD_VARIABLE] = json.dumps(asdict(self))


def take_held() -> Inherited | None:
    """Return what an exec before this one left in the environment, None for a fresh start."""
    text = os.environ.pop(HELD_VARIABLE, "")
    if not text:
        return None
    held = Inherited(**json.loads(text))
    for descriptor in (held.lock, *held.shared_locks, held.notify):
        if descriptor >= 0:
            os.set_inheritable(descriptor, False)
    return held


def become(config: Path, held: Inherited) -> None:
    """Replace this process by the parent; signals stay blocked until it listens.

    Raises OSError where nothing runs yet; else this process goes on as the parent itself.
    """
    held.save()
    signals.block()
    argv = [installed.python(), "-P", "-m", "agent.rootless.parent", str(config)]
    try:
        os.execv(argv[0], argv)
    except OSError as error:
        if not held.rootlesskit:
            raise
        held.refused = held.refused or f"the installed code cannot be started: {error}"
        held.save()
        # With all that is imported here in memory, but with the functions that run.
        sys.exit(main([str(config)]))


class Parent:
    """The loop over one rootlesskit."""

    def __init__(self, house: House, held: Inherited) -> None:
        self.house = house
        self.held = held
        self.inbox = Inbox()
        self.status: int | None = None
        self._ready = bool(held.rootlesskit)
        if held.notify < 0:
            held.notify = notify.listen(house.notify).detach()
        self._notify = socket.socket(fileno=held.notify)
        self._stop_by: float | None = None
        self._to_pass_on: list[int] = []
        self._again_from = 0.0
        self._hurried = False

    def run(self) -> int:
        """Start or take over the house, stay until it ends, clean up; return the exit status."""
        if self.held.rootlesskit:
            if self.held.refused:
                self._refuse(self.held.refused)
            else:
                self._pass_on(signal.SIGHUP)
        else:
            self._start()
        with selectors.DefaultSelector() as selector:
            selector.register(self.inbox.reader, selectors.EVENT_READ)
            selector.register(self._notify, selectors.EVENT_READ)
            while not self._ended():
                selector.select(self._timeout_s())
                self.inbox.drain()
                self._tell(notify.receive(self._notify))
                self._obey()
        return self._clean()

    def _start(self) -> None:
        house = self.house
        groups = layout()
        # The node's directories stay: one of them is our lock on the node's name.
        roots = groups.node_directories(house.node)
        swept = sweep(roots, within_s=_SWEEP_S, keep_roots=True)
        if swept.ended or swept.alive or swept.stayed:
            notify.say("run", swept.sentence())
        if swept.alive:
            raise FailedPrecondition(
                f"processes of an earlier run do not end: {swept.alive[:5]}; "
                f"look at them with 'ps -o pid,stat,wchan,args -p {swept.alive[0]}'"
            )
        cgroup.create_node(groups, house.node)
        cgroup.save(groups, house.run / settings.CGROUP_NAME)
        leftovers.clear_directory(house.rootlesskit_state)
        environment = _environment(house)
        shared = root_is_shared(mountinfo.text())
        self.held.listening = False
        # A session of its own: Ctrl-C reaches the whole foreground group, and must arrive once.
        self.held.rootlesskit = child.start(
            command(house, supervise_command(house.config), shared_root=shared),
            environment,
            dies_with_parent=signal.SIGTERM,
            new_session=True,
            group=groups.agent_directory(house.node),
        )

    def _timeout_s(self) -> float | None:
        return None if self._stop_by is None else max(self._stop_by - time.monotonic(), 0.0)

    def _ended(self) -> bool:
        with suppress(ChildProcessError):
            pid, status = os.waitpid(self.held.rootlesskit, os.WNOHANG)
            if pid:
                self.status = status
                return True
        if self._stop_by is not None and time.monotonic() >= self._stop_by:
            notify.say("run", "the house did not stop in its time: killing everything")
            return True
        return False

    def _obey(self) -> None:
        while self.inbox.asked:
            number = self.inbox.asked.pop(0)
            if number == signal.SIGHUP and self._stop_by is None:
                self._reload()
            elif number != signal.SIGHUP:
                self._stop(number)

    def _stop(self, number: int) -> None:
        now = time.monotonic()
        if self._stop_by is None:
            notify.say("run", f"{signal.Signals(number).name}: stopping; once more cuts it short")
            notify.send(os.environ.get("NOTIFY_SOCKET", ""), "STOPPING=1")
            self._stop_by = now + self.house.stop_timeout_s + _STOP_MARGIN_S
        elif now < self._again_from:
            return
        elif self._hurried:
            notify.say("run", "asked a third time: killing everything")
            self._stop_by = now
            return
        else:
            self._hurried = True
        self._again_from = now + _SAME_SIGNAL_S
        self._pass_on(signal.SIGTERM)

    def _pass_on(self, number: int) -> None:
        """Have `supervise` get a signal, now or as soon as it obeys signals."""
        self._to_pass_on.append(number)
        self._send_signals()

    def _send_signals(self) -> None:
        while self.held.listening and self._to_pass_on:
            # rootlesskit passes every signal on to its child, and that one to `supervise`.
            with suppress(ProcessLookupError):
                os.kill(self.held.rootlesskit, self._to_pass_on.pop(0))

    def _tell(self, lines: list[str]) -> None:
        if notify.LISTENING in lines:
            self.held.listening = True
            self._send_signals()
        if notify.RELOADED in lines:
            self.house = settings.read(Path(self.held.config))
        if notify.RELOAD in lines and self._stop_by is None:
            self._reload()
        if notify.READY in lines and not self._ready:
            self._ready = True
            notify.say("run", f"kindling is ready: {_doors(self.house)}")
            notify.send(os.environ.get("NOTIFY_SOCKET", ""), notify.READY)

    def _refuse(self, reason: str) -> None:
        """Say that a reload changes nothing."""
        run = self.house.run
        notify.say("run", f"reload refused, the agent goes on as it was: {reason}")
        said = "; ".join([*reason.splitlines(), outcome.AS_IT_WAS])
        outcome.end(run, outcome.read(run).number, said)
        self.held.refused = ""

    def _reload(self) -> None:
        """Go through `kindling run` again, if the installed code and the file are good."""
        outcome.begin(self.house.run)
        again = [installed.python(), "-P", "-m", "agent.cli.main", "run"]
        if self.held.config_file:
            again += ["--config", self.held.config_file]
        try:
            trial = subprocess.run(
                [*again, "--check-config"],
                stderr=subprocess.PIPE,
                timeout=_TRIAL_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            self._refuse("the installed code does not answer")
            return
        except OSError as error:
            self._refuse(f"the installed code cannot be tried: {error}")
            return
        if trial.returncode != 0:
            said = trial.stderr.decode("utf-8", "replace").strip().splitlines()
            self._refuse("; ".join(said[-3:]) or f"exit status {trial.returncode}")
            return
        if self.inbox.blocked():
            notify.say("run", "reloading")
            self.held.save()
            try:
                os.execv(again[0], again)
            except OSError as error:
                take_held()  # as before `save`
                signals.unblock()
                self._refuse(f"the installed code cannot be started: {error}")

    def _clean(self) -> int:
        house = self.house
        groups = layout()
        swept = sweep(groups.node_directories(house.node), within_s=_SWEEP_S)
        with suppress(ChildProcessError):
            os.waitpid(self.held.rootlesskit, os.WNOHANG)
        stayed = leftovers.clear_directory(house.run, keep=(lock.NAME,))
        if stayed:
            notify.say("run", f"cannot be removed: {', '.join(map(str, stayed[:5]))}")
        asked = self._stop_by is not None
        if self.status is None or self.status != 0:
            how = "did not end" if self.status is None else child.how_ended(self.status)
            notify.say("run", f"the house ended with {how}; {swept.sentence()}")
        lock.release(house.run, self.held.lock)
        return 0 if asked and self.status == 0 and not swept.alive else 1


def layout() -> cgroup.CgroupLayout:
    """Return the host's cgroup layout; raises FailedPrecondition where there are no cgroups."""
    found = cgroup.detect()
    if found is None:
        raise FailedPrecondition("no cgroups are mounted: run 'kindling check'")
    return found


def _environment(house: House) -> dict[str, str]:
    """Return what everything in the house is started with."""
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    return kept | {
        "PATH": f"{house.lib}/bin:{_PATH}",
        "HOME": str(house.data),
        "XDG_RUNTIME_DIR": str(house.run),
        mounts.PLACES_VARIABLE: mounts.places(house),
        # gzip is unpacked by igzip, which setup brings, or by containerd itself: what unpigz, where
        # a host has it, makes of odd layers no test sees.
        "CONTAINERD_DISABLE_PIGZ": "1",
    }


def _doors(house: House) -> str:
    return ", ".join(door.address for door in house.doors)


def main(arguments: list[str]) -> int:
    """Entry after `become`: the resolved configuration's path; returns the exit status."""
    held = take_held()
    if held is None or len(arguments) != 1:
        notify.say("run", "is started by 'kindling run'")
        return 2
    prctl.set_process_name("kindling-run")
    house = settings.read(Path(arguments[0]))
    try:
        return Parent(house, held).run()
    except (AgentError, OSError) as error:
        notify.say("run", f"cannot go on: {error}")
        sweep(layout().node_directories(house.node), within_s=_SWEEP_S)
        leftovers.clear_directory(house.run, keep=(lock.NAME,))
        lock.release(house.run, held.lock)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
