"""The room `linux` on the real kernel: mounts, trees with mounts in them, namespaces, prctl."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.inside.kernel_probe import CASES, NO_NAMESPACES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("case", CASES)
def test_in_a_namespace_of_its_own(case, tmp_path):
    command = [sys.executable, "-m", "tests.inside.kernel_probe", case, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == NO_NAMESPACES:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
