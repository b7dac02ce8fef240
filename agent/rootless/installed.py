"""Which interpreter runs the agent that is installed now, and where its init is.

Setup gives each version of the agent an environment of its own, `agents/<id>`, and turns the link
`venv` beside them over to the newest (setup/install.sh). A process keeps to the environment it was
started from, so that it never mixes two versions; a reload asks here for the one to go on with.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

LINK = "venv"
VERSIONS = "agents"
INIT = "kindling-init"
HOME = Path("/usr/lib/kindling")  # where setup installs (setup/lib.sh)


def python() -> str:
    """Return the path of the installed agent's interpreter, ours where setup installed none."""
    link = Path(sys.prefix)
    if link.parent.name == VERSIONS:
        link = link.parent.parent / LINK
    if not link.is_symlink():
        return sys.executable
    # Only the link is followed: the interpreter finds its environment by the path it is called by.
    found = Path(os.path.realpath(link), "bin", "python")
    return str(found) if os.access(found, os.X_OK) else sys.executable


def init_path() -> Path:
    """Return the path of the instances' first process: of our own version, or the installed one.

    An agent that runs from a working tree has none of its own.
    """
    own = Path(os.path.realpath(sys.prefix), "bin", INIT)
    return own if own.exists() else Path(os.path.realpath(HOME / LINK), "bin", INIT)
