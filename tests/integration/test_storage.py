"""The storage room for real: slots with a limit of the kernel's, overlays, wiping, tmpfs.

Inside rootlesskit as user kindling, on slots made here the way setup makes them (small ones).
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.inside.rootless_session import ProbeFailed, Session

pytestmark = pytest.mark.integration

SLOTS = 3
CLASS_MB = 64
MB = 1 << 20


def make_slot(image: Path, place: Path) -> None:
    """One slot as setup/slots.sh makes them: the free blocks are the class, and a bit."""
    template = image.with_suffix(".d")
    for name in ("upper", "work"):
        (template / name).mkdir(parents=True)
        shutil.chown(template / name, "kindling", "kindling")
    identity = subprocess.check_output(["id", "-u", "kindling"], text=True).strip()
    group = subprocess.check_output(["id", "-g", "kindling"], text=True).strip()
    with image.open("wb") as file:
        file.truncate((CLASS_MB + 4) * MB)
    owner = f"root_owner={identity}:{group}"
    features = "^has_journal,^resize_inode"
    make = ["mkfs.ext4", "-q", "-F", "-m0", "-O", features, "-N", "2048", "-E", owner]
    subprocess.run([*make, "-d", str(template), str(image)], check=True)
    place.mkdir(parents=True)
    subprocess.run(["mount", "-o", "loop,nodev,nosuid", str(image), str(place)], check=True)


class SlotSession(Session):
    """A session with slots of its own, mounted before the namespace is made."""

    def prepare(self) -> None:
        for number in range(SLOTS):
            place = self.root / "slots" / str(CLASS_MB) / str(number)
            make_slot(self.root / f"{number}.img", place)
        # one whose mount is missing
        (self.root / "slots" / str(CLASS_MB) / "9").mkdir()

    def end(self) -> None:
        try:
            super().stop()
        finally:
            for place in (self.root / "slots" / str(CLASS_MB)).iterdir():
                if place.is_mount():
                    subprocess.run(["umount", str(place)], check=True)
            super().end()


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    session = SlotSession("storage_probe")
    try:
        yield session
    finally:
        session.end()


@pytest.fixture
def room(session: Session) -> Iterator[Session]:
    """The room open on slots; afterwards every layer is given back and clean again."""
    session.call("open")
    yield session
    session.call("sweep", keep=[])
    session.call("close")


def test_slots_are_found_and_counted(room: Session) -> None:
    assert room.call("settled")[f"slot{CLASS_MB}"] == {
        "free": 0,
        "making": 0,
        "ready": SLOTS,
        "leased": 0,
        "dirty": 0,
    }


def test_an_instance_writes_into_its_layer_over_the_images(room: Session) -> None:
    room.call("lease", instance="i", disk_mb=CLASS_MB)
    place = room.call("prepare", instance="i", lower=["upper-one", "base"])
    assert place == str(room.run / "rootfs" / "i")
    assert room.call("read", instance="i", name="top") == "upper-one"
    assert room.call("read", instance="i", name="only-base") == "base"
    room.call("write", instance="i", name="top", text="mine")
    assert room.call("read", instance="i", name="top") == "mine"
    options = room.call("options", instance="i")
    assert "userxattr" in options
    assert "volatile" in options
    room.call("teardown", instance="i")
    room.call("teardown", instance="i")
    assert room.call("mounted") == []
    room.call("release", instance="i")


def test_writing_ends_at_the_size_of_the_layer(room: Session) -> None:
    room.call("lease", instance="i", disk_mb=CLASS_MB)
    room.call("prepare", instance="i", lower=["base"])
    used, total = room.call("usage", instance="i")
    assert used < 8 * MB
    written, error = room.call("fill", instance="i")
    assert error == "ENOSPC"
    assert (CLASS_MB - 2) * MB <= written <= total
    assert room.call("usage", instance="i")[0] >= written
    room.call("teardown", instance="i")
    room.call("release", instance="i")
    room.call("settled")
    room.call("lease", instance="j", disk_mb=CLASS_MB)
    assert room.call("usage", instance="j")[0] <= used
    room.call("release", instance="j")


def test_inodes_end_too(room: Session) -> None:
    room.call("lease", instance="i", disk_mb=CLASS_MB)
    room.call("prepare", instance="i", lower=["base"])
    made, error = room.call("many_files", instance="i", count=4000)
    assert error == "ENOSPC"
    assert made < 2048
    room.call("teardown", instance="i")
    room.call("release", instance="i")


def test_the_next_instance_finds_nothing_of_the_last(room: Session) -> None:
    first = room.call("lease", instance="i", disk_mb=CLASS_MB)
    room.call("prepare", instance="i", lower=["base"])
    room.call("mess", instance="i", depth=1500)
    room.call("teardown", instance="i")
    room.call("release", instance="i")
    counts = room.call("settled")[f"slot{CLASS_MB}"]
    assert (counts["ready"], counts["free"]) == (SLOTS, 0)
    again = {}
    for number in range(SLOTS):
        slot = room.call("lease", instance=f"n{number}", disk_mb=CLASS_MB)
        again[slot["number"]] = slot
    fresh = again[first["number"]]
    assert (fresh["upper"], fresh["work"], fresh["attributes"]) == ([], [], [])
    assert fresh["mode"] == "0o755"
    for number in range(SLOTS):
        room.call("release", instance=f"n{number}")


def test_a_slot_full_of_directories_is_emptied(room: Session) -> None:
    """No inode and no block is left for whoever cleans up."""
    room.call("lease", instance="i", disk_mb=CLASS_MB)
    room.call("prepare", instance="i", lower=["base"])
    assert room.call("many_directories", instance="i", count=4000)[1] == "ENOSPC"
    room.call("fill_first", instance="i")
    room.call("teardown", instance="i")
    room.call("release", instance="i")
    assert room.call("settled")[f"slot{CLASS_MB}"]["ready"] == SLOTS


def test_an_interrupted_wiping_is_finished(room: Session) -> None:
    room.call("settled")
    room.call("close")
    assert room.call("interrupted") == ["lost+found", "stray", "work"]
    room.call("open")
    assert room.call("settled")[f"slot{CLASS_MB}"]["ready"] == SLOTS
    assert room.call("look", number=0) == ["lost+found", "upper", "work"]


def test_no_free_slot_is_overload_and_a_wrong_size_is_not(room: Session) -> None:
    room.call("settled")
    for number in range(SLOTS):
        room.call("lease", instance=f"i{number}", disk_mb=CLASS_MB)
    with pytest.raises(ProbeFailed) as caught:
        room.call("lease", instance="more", disk_mb=CLASS_MB)
    assert caught.value.kind == "Overloaded"
    assert f"all {SLOTS} writable-layer slots of {CLASS_MB} MB are taken" in caught.value.message
    with pytest.raises(ProbeFailed) as caught:
        room.call("lease", instance="other", disk_mb=512)
    assert caught.value.kind == "FailedPrecondition"
    assert f"only of {CLASS_MB} MB" in caught.value.message
    # one that is just being wiped is worth waiting for
    assert room.call("waits_for_a_slot", first="i0") == f"slot{CLASS_MB}"
    for name in ("i1", "i2", "late"):
        room.call("release", instance=name)


def test_a_second_release_is_a_bug(room: Session) -> None:
    room.call("lease", instance="i", disk_mb=CLASS_MB)
    with pytest.raises(ProbeFailed) as caught:
        room.call("release_twice", instance="i")
    assert caught.value.kind == "Bug"
    assert room.call("settled")[f"slot{CLASS_MB}"]["ready"] == SLOTS


def test_a_running_instances_layer_is_adopted_untouched(room: Session) -> None:
    slot = room.call("lease", instance="i", disk_mb=CLASS_MB)
    room.call("prepare", instance="i", lower=["base"])
    room.call("write", instance="i", name="precious", text="kept")
    room.call("lease", instance="gone", disk_mb=CLASS_MB)
    room.call("prepare", instance="gone", lower=["base"])
    room.call("close")
    room.call("open", ready=False)
    upper = room.call("adopt", instance="i", kind=slot["kind"], number=slot["number"])
    for kind, number, error in (
        (slot["kind"], 9, "NotFound"),
        ("slot7", 0, "NotFound"),
        ("other", 0, "Bug"),
    ):
        with pytest.raises(ProbeFailed) as caught:
            room.call("adopt", instance="x", kind=kind, number=number)
        assert caught.value.kind == error
    room.call("sweep", keep=["i"])
    room.call("ready")
    counts = room.call("settled")[f"slot{CLASS_MB}"]
    assert (counts["leased"], counts["ready"]) == (1, SLOTS - 1)
    assert room.call("mounted") == ["rootfs/i"]
    assert room.call("read", instance="i", name="precious") == "kept"
    assert upper.endswith(f"/{CLASS_MB}/{slot['number']}/upper")
    room.call("teardown", instance="i")
    room.call("release", instance="i")


@pytest.mark.parametrize(
    ("way", "count", "length"),
    [("layers", 200, 20), ("relative", 150, 8), ("overlay", 200, 20), ("overlay", 3, 20)],
)
def test_an_image_of_many_layers_is_mounted(
    room: Session, way: str, count: int, length: int
) -> None:
    room.call("lease", instance="deep", disk_mb=CLASS_MB)
    facts = room.call("deep", count=count, length=length, way=way)
    assert facts == {"entries": count, "top": "000", "cwd": True, "upper": "x"}
    room.call("release", instance="deep")
    room.call("settled")


def test_names_with_the_option_parsers_signs_are_mounted(room: Session) -> None:
    room.call("lease", instance="odd", disk_mb=CLASS_MB)
    assert room.call("odd_names") == "o,d:d\\1True"
    room.call("release", instance="odd")


def test_a_mount_that_fails_names_path_and_cause_and_leaves_nothing(room: Session) -> None:
    room.call("lease", instance="i", disk_mb=CLASS_MB)
    room.call("prepare", instance="i", lower=["base"])
    with pytest.raises(ProbeFailed) as caught:
        room.call("prepare", instance="i", lower=["base"])
    assert caught.value.kind == "Bug"
    room.call("teardown", instance="i")
    with pytest.raises(ProbeFailed) as caught:
        room.call("prepare_missing", instance="i")
    assert caught.value.kind == "RuntimeUnavailable"
    assert "overlay at" in caught.value.message
    assert "No such file or directory" in caught.value.message
    assert room.call("mounted") == []
    room.call("release", instance="i")


def test_cancelled_prepares_leave_nothing(room: Session) -> None:
    room.call("lease", instance="cancelled", disk_mb=CLASS_MB)
    assert room.call("cancelled_prepares", count=60) == []
    room.call("release", instance="cancelled")


def test_cancelled_leases_lose_no_slot(room: Session) -> None:
    room.call("settled")
    assert room.call("cancelled_leases", count=30)[f"slot{CLASS_MB}"]["ready"] == SLOTS


def test_no_slots_at_all_says_what_to_do(session: Session) -> None:
    with pytest.raises(ProbeFailed) as caught:
        session.call("open", where="/nowhere")
    assert caught.value.kind == "FailedPrecondition"
    assert "setup/host.sh" in caught.value.message


def test_layers_in_memory(session: Session) -> None:
    session.call("open", writable="tmpfs")
    layer = session.call("lease", instance="m", disk_mb=16)
    assert (layer["kind"], layer["upper"], layer["work"]) == ("tmpfs", [], [])
    session.call("prepare", instance="m", lower=["base"])
    written, error = session.call("fill", instance="m")
    assert error == "ENOSPC"
    assert written <= 16 * MB
    assert session.call("usage", instance="m") == [16 * MB, 16 * MB]
    assert session.call("counts")["tmpfs"]["leased"] == 1
    session.call("close")
    session.call("open", writable="tmpfs", ready=False)
    session.call("adopt", instance="m", kind="tmpfs", number=layer["number"])
    with pytest.raises(ProbeFailed) as caught:
        session.call("adopt", instance="x", kind="tmpfs", number=1)
    assert caught.value.kind == "NotFound"
    session.call("ready")
    assert sorted(session.call("mounted")) == ["layers/m", "rootfs/m"]
    session.call("teardown", instance="m")
    session.call("release", instance="m")
    # one that nobody adopts goes away
    session.call("lease", instance="stale", disk_mb=16)
    session.call("close")
    session.call("open", writable="tmpfs")
    assert session.call("mounted") == []
    assert session.call("cancelled_leases", count=20)["tmpfs"]["leased"] == 0
    assert session.call("mounted") == []
    session.call("close")
