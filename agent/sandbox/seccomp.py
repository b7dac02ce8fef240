"""The functions' system-call filter as the runtime compiled it, so that it is compiled once.

crun compiles the profile of every container anew, 15 ms of CPU in a cold start of 50. The program
stays in the container's state directory, and crun takes one ready-made by annotation (crun(1),
run.oci.seccomp_bpf_data). Anchors carry the functions' profile: what their runtime made of it
serves every function. The profile itself stays in each spec for a runtime that knows no such thing.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from agent.core.oci import CAPABILITIES
from agent.core.seccomp import profile

ANNOTATION = "run.oci.seccomp_bpf_data"
INSTRUCTION_BYTES = 8  # struct sock_filter, linux/filter.h
PROFILE: dict[str, Any] = profile(CAPABILITIES)


def compiled(state: Path) -> dict[str, str]:
    """Return the annotation with what a runtime compiled for the container of this state directory.

    Empty when there is no program, or when it was made from another profile than today's: by an
    agent before this one.
    """
    try:
        spec = json.loads((state / "config.json").read_bytes())
        program = (state / "seccomp.bpf").read_bytes()
        profiled = spec["linux"]["seccomp"] == PROFILE
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    if not profiled or not program or len(program) % INSTRUCTION_BYTES:
        return {}
    return {ANNOTATION: base64.b64encode(program).decode("ascii")}
