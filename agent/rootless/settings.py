"""What the house needs of the node's configuration, read from <run>/config.json.

The file is the resolved NodeConfig as JSON, written by `kindling run` and checked there; this is a
plain view of it for code that may not import pydantic. Field meanings stand in `agent.config`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG_NAME = "config.json"
# The one that the next reload is to take, written by `run`.
NEXT_CONFIG_NAME = "config.next.json"
# That of the reload under way: `supervise` renames it to this, so that none that is asked for
# meanwhile changes it, and to CONFIG_NAME once its worker is prepared.
TRYING_CONFIG_NAME = "config.trying.json"
CGROUP_NAME = "cgroup.json"
NOTIFY_NAME = "notify.sock"
# Who is who, for people and tests: {"supervise": pid, "containerd": pid, "worker": pid}.
PIDS_NAME = "pids.json"


@dataclass(frozen=True, slots=True)
class Listener:
    """One listening socket: the name the worker knows it by, where it listens, and its file mode.

    `address` is "host:port" for TCP and an absolute path for unix sockets; `mode` is 0 for TCP.
    """

    name: str
    address: str
    mode: int = 0

    @property
    def is_unix(self) -> bool:
        """Whether this door is a unix socket."""
        return self.mode != 0


@dataclass(frozen=True, slots=True)
class Engine:
    """A daemon for lazy images that is there: its program, its configuration, its fixed place."""

    name: str
    program: str
    settings: str
    place: str


@dataclass(frozen=True, slots=True)
class House:
    """Places, doors and bounds of one agent."""

    node: str
    run: Path
    data: Path
    lib: Path
    slots: Path
    doors: tuple[Listener, ...]
    stop_timeout_s: float
    writable: str
    runtime: str
    engines: tuple[Engine, ...] = ()
    registries: Path | None = None

    @property
    def config(self) -> Path:
        """The resolved configuration, for the worker."""
        return self.run / CONFIG_NAME

    @property
    def rootlesskit_state(self) -> Path:
        """rootlesskit's state directory; the detached network namespace is `netns` in it."""
        return self.run / "rootlesskit"

    @property
    def containerd_socket(self) -> Path:
        """Where containerd serves its API."""
        return self.run / "containerd" / "containerd.sock"

    @property
    def slots_file(self) -> Path:
        """Setup's description of the slots; its lock says which agent has them."""
        return self.slots / "slots.json"

    @property
    def notify(self) -> Path:
        """The datagram socket on which `supervise` tells `run` how it is."""
        return self.run / NOTIFY_NAME


def read(path: Path) -> House:
    """Read the resolved configuration; raises OSError, ValueError or KeyError if it is not one."""
    return house_of(json.loads(path.read_text("utf-8")))


def house_of(data: dict[str, Any]) -> House:
    """Pick the house's settings out of the configuration's JSON."""
    paths = {name: Path(value) for name, value in data["paths"].items()}
    run = paths["run"]
    registries = data.get("registries", {}).get("directory")
    # Group kindling may call and administer; everyone who reaches the directory may look.
    doors = (
        Listener("invoke_tcp", data["invoke"]["listen"]),
        Listener("invoke_unix", _under(run, data["invoke"]["socket"]), 0o660),
        Listener("grpc_admin", _under(run, data["grpc"]["socket"]), 0o660),
        Listener("grpc_readonly", _under(run, data["grpc"]["readonly_socket"]), 0o666),
        Listener("admin_tcp", data["admin"]["listen"]),
        Listener("admin_unix", _under(run, data["admin"]["socket"]), 0o660),
    )
    return House(
        node=data["node"]["name"],
        run=run,
        data=paths["data"],
        lib=paths["lib"],
        slots=paths["slots"],
        doors=tuple(door for door in doors if door.address),
        stop_timeout_s=float(data["limits"]["stop_timeout_s"]),
        writable=data["storage"]["writable"],
        runtime=data["runtime"]["binary"],
        engines=_engines(data["lazy"]["engines"], paths["lib"]) if "lazy" in data else (),
        registries=Path(registries) if registries else None,
    )


def engine_directory(run: Path, name: str) -> Path:
    """Return an engine's directory on tmpfs; DOCKER_CONFIG of the daemon is this one."""
    return run / "lazy" / name


def engine_socket(run: Path, name: str) -> Path:
    """Return where an engine serves containerd's snapshots API."""
    return engine_directory(run, name) / "engine.sock"


def engine_data(data: Path, name: str) -> Path:
    """Return an engine's directory on disk."""
    return data / "lazy" / name


def engine_set_aside(data: Path, name: str) -> Path:
    """Return where that lies that an ended engine has kept, until it is removed."""
    return data / "lazy" / f"{name}.gone"


def engine_state(data: Path, name: str) -> Path:
    """Return a file that an engine makes when it first runs."""
    return engine_data(data, name) / "snapshotter" / "metadata.db"


def engine_authorities(run: Path, name: str) -> Path:
    """Return the file of certificates that an engine believes, written when it is started."""
    return engine_directory(run, name) / "authorities.pem"


def program(lib: Path, name: str) -> str | None:
    """Return a program's path: one of setup's private binaries, else one on PATH."""
    return shutil.which(name, path=str(lib / "bin")) or shutil.which(name)


def engine_program(lib: Path, binary: str, place: str) -> str | None:
    """Return the program of an engine that can run here; setup makes its fixed place."""
    return program(lib, binary) if not place or Path(place).is_dir() else None


def _engines(described: list[dict[str, str]], lib: Path) -> tuple[Engine, ...]:
    found = ((one, engine_program(lib, one["binary"], one["place"])) for one in described)
    return tuple(
        Engine(one["name"], path, one["settings"], one["place"]) for one, path in found if path
    )


def _under(run: Path, name: str) -> str:
    return str(run / name) if name else ""
