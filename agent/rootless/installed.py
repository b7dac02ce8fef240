"""Which interpreter runs the agent that is installed now, where its init is, how it was built.

Setup gives each version of the agent an environment of its own, `agents/<id>`, and turns the link
`venv` beside them over to the newest (setup/install.sh). A process keeps to the environment it was
started from, so that it never mixes two versions; a reload asks here for the one to go on with.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

LINK = "venv"
VERSIONS = "agents"
INIT = "kindling-init"
# What setup says of an environment whose warm path it did not compile: one line, "word: why".
PURE_NOTE = ".kindling-pure"
# One of the modules that setup compiles together (pyproject.toml, [tool.kindling]).
ONE_COMPILED = "agent.core.metering"
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


@dataclass(frozen=True, slots=True)
class Form:
    """Whether this process runs the warm path compiled; if not, why, and whether it should."""

    compiled: bool
    why: str = ""
    wanted: bool = True

    @property
    def name(self) -> str:
        """Its name, as GetNode has it."""
        return "compiled" if self.compiled else "pure"


def form() -> Form:
    """Return the form that an import takes here: an extension module comes before its source."""
    found = find_spec(ONE_COMPILED)
    if found is not None and (found.origin or "").endswith(tuple(EXTENSION_SUFFIXES)):
        return Form(compiled=True)
    try:
        note = Path(os.path.realpath(sys.prefix), PURE_NOTE).read_text("utf-8")
    except OSError:
        return Form(False, "runs from sources that setup did not install", wanted=False)
    word, _, why = note.strip().partition(": ")
    return Form(False, why, wanted=word != "chosen")
