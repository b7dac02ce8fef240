"""What the shim is told about its OCI runtime."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent._pb.containerd.types.runc.options.oci_pb2 import Options
from agent.containerd.containers import OPTIONS_URL, RuntimeOptions

CRUN = RuntimeOptions(binary="/usr/bin/crun", root=Path("/run/kindling/crun"))


def told(options: RuntimeOptions) -> Options:
    sent = options.any()
    assert sent.type_url == OPTIONS_URL
    return Options.FromString(sent.value)


def test_a_container_makes_no_keyring_of_its_own():
    # Each would count against kernel.keys.maxkeys of the one user that owns all containers.
    assert told(CRUN).no_new_keyring is True


def test_the_shim_is_told_which_runtime_keeps_its_state_where():
    options = told(CRUN)
    assert (options.binary_name, options.root) == ("/usr/bin/crun", "/run/kindling/crun")
    assert options.systemd_cgroup is False


@pytest.mark.parametrize("wanted", [True, False])
def test_what_is_asked_for_is_what_is_sent(wanted):
    options = RuntimeOptions("crun", Path("/r"), no_new_keyring=wanted, systemd_cgroup=wanted)
    assert (told(options).no_new_keyring, told(options).systemd_cgroup) == (wanted, wanted)
