"""No test drops out unless tests/skips.toml lists it: tests/conftest.py on sessions of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
SKIPPED = """
@pytest.mark.skip
def test_marked(): pass

def test_inside(): pytest.skip("why")
"""
EXPECTED = """
@pytest.mark.xfail
def test_failing(): assert False

@pytest.mark.xfail
def test_passing(): pass

@pytest.mark.xfail(run=False)
def test_unrun(): assert False

def test_inside(): pytest.xfail("why")
"""
WHOLE = "pytest.skip('why', allow_module_level=True)"
DROPPED = {"skipped": SKIPPED, "expected": EXPECTED, "whole": WHOLE}


def session(
    place: Path, files: dict[str, str], listed: str = ""
) -> subprocess.CompletedProcess[str]:
    shutil.copy(CONFTEST, place)
    for name, text in files.items():
        (place / f"test_{name}.py").write_text(f"import pytest\n{text}\n")
    (place / "test_other.py").write_text("def test_other(): pass\n")
    (place / "skips.toml").write_text(listed)
    (place / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    # -rN: the short summary at the end tells each reason again, in whole if CI is set.
    options = ["-q", "-rN", "--color=no", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, str(place)]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", DROPPED)
def test_what_drops_out_unlisted_fails_the_session(tmp_path, kind):
    done = session(tmp_path, {kind: DROPPED[kind]})
    assert done.returncode != 0
    told = {
        line for line in done.stdout.splitlines() if line.endswith("listed in tests/skips.toml")
    }
    assert len(told) == max(1, DROPPED[kind].count("def test"))


def test_what_is_listed_may_drop_out(tmp_path):
    entries = [f'[[skip]]\ntest = "test_{kind}.py"\nreason = "as told"\n' for kind in DROPPED]
    done = session(tmp_path, DROPPED, "\n".join(entries))
    assert done.returncode == 0, done.stdout
    assert "1 passed, 3 skipped, 3 xfailed, 1 xpassed" in done.stdout
