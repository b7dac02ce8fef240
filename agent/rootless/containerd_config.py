"""containerd's configuration: only what the agent uses, all of it in places of our own.

A pure function from places to TOML text (version 3, read by containerd >= 2.0), and what a start
makes of it. Plugins that are not listed as disabled keep containerd's defaults.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from agent.rootless.settings import House, engine_socket

# Each of these costs start time, wants root or paths outside our own, or answers to nobody here.
DISABLED_PLUGINS = (
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.grpc.v1.cri",
    "io.containerd.podsandbox.controller.v1.podsandbox",
    "io.containerd.grpc.v1.sandbox-controllers",
    "io.containerd.nri.v1.nri",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.monitor.container.v1.restart",
    # Out-of-memory and usage are read from the instance's cgroup by the agent itself.
    "io.containerd.monitor.task.v1.cgroups",
    "io.containerd.differ.v1.erofs",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.snapshotter.v1.native",
    "io.containerd.snapshotter.v1.zfs",
)

# Layers handed over as this type pass through agent/containerd/owner_filter.py.
OWNERS_PROCESSOR = "kindling.owners"
OWNERS_MEDIA_TYPE = "application/vnd.kindling.layer.owners"


def owners_processor(python: Path) -> str:
    """Return the part that tells containerd of the filter; `python` has the agent's packages."""
    return f"""\
[stream_processors.{_quoted(OWNERS_PROCESSOR)}]
  accepts = [{_quoted(OWNERS_MEDIA_TYPE)}]
  returns = "application/vnd.oci.image.layer.v1.tar"
  path = {_quoted(python)}
  args = ["-m", "agent.containerd.owner_filter"]
"""


def text(
    *,
    root: Path,
    state: Path,
    socket: Path,
    python: Path,
    engines: Sequence[tuple[str, Path]] = (),
) -> str:
    """Return the configuration for one private containerd; `engines`: name and socket."""
    disabled = "".join(f"  {_quoted(name)},\n" for name in DISABLED_PLUGINS)
    return f"""\
# Written by kindling at every start; changes are lost.
version = 3
root = {_quoted(root)}
state = {_quoted(state)}
temp = {_quoted(state / "tmp")}
disabled_plugins = [
{disabled}]

[grpc]
  address = {_quoted(socket)}
  # Listing 500 containers with their specs comes near the default of 16 MB.
  max_recv_message_size = 67108864
  max_send_message_size = 67108864

[timeouts]
  # Without a bound a database locked by a forgotten containerd hangs the start for ever.
  "io.containerd.timeout.bolt.open" = "10s"

[plugins."io.containerd.gc.v1.scheduler"]
  # Deletions are collected in the background; none waits for the next mutation.
  deletion_threshold = 1
  schedule_delay = "1s"

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/amd64"
  snapshotter = "overlayfs"

{owners_processor(python)}""" + "".join(_engine(name, address) for name, address in engines)


def _engine(name: str, address: Path) -> str:
    """Return what makes a daemon a snapshotter that pulls may name; it need not run yet."""
    return f"""\

[proxy_plugins.{name}]
  type = "snapshot"
  address = {_quoted(address)}
  [proxy_plugins.{name}.exports]
    # Only then a pull asks it to mount a layer before it fetches one.
    enable_remote_snapshot_annotations = "true"

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/amd64"
  snapshotter = {_quoted(name)}
"""


def _quoted(value: object) -> str:
    # A JSON string is a TOML basic string for every text without control characters above ASCII.
    return json.dumps(str(value), ensure_ascii=False)


def prepare(house: House) -> list[str]:
    """Write the file and what belongs to it; return the argv of this house's containerd."""
    state = house.containerd_socket.parent
    (state / "tmp").mkdir(parents=True, exist_ok=True)
    config = state / "config.toml"
    root, sock = house.data / "containerd", house.containerd_socket
    python = house.lib / "venv" / "bin" / "python"
    engines = [(one.name, engine_socket(house.run, one.name)) for one in house.engines]
    config.write_text(text(root=root, state=state, socket=sock, python=python, engines=engines))
    # A socket of a killed containerd would look like a living one that does not answer.
    sock.unlink(missing_ok=True)
    return [str(house.lib / "bin" / "containerd"), "--config", str(config), "--log-level=warn"]
