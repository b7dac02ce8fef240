"""What containerd's unpacker says, as seen, and what we make of it."""

from __future__ import annotations

import pytest

from agent.core.unpack_errors import BAD_LAYER, unpack_error

LAYER = (
    "failed to extract layer (application/vnd.oci.image.layer.v1.tar sha256:5f) to overlayfs as "
    '"extract-1-Ab sha256:77": '
)
PLACE = "/run/kindling/containerd/tmp/containerd-mount3526912034"


@pytest.mark.parametrize(
    ("said", "words", "full", "owner"),
    [
        (
            f'failed to Lchown "{PLACE}/app/x.md" for UID 1516583083, GID 0: lchown '
            f"{PLACE}/app/x.md: invalid argument (Hint: try increasing the number of subordinate "
            "IDs in /etc/subuid and /etc/subgid)",
            "/app/x.md belongs to user 1516583083 and group 0, and a node has ids 0-65535 only",
            False,
            True,
        ),
        (
            f'failed to Lchown "{PLACE}/a b" for UID 0, GID -2: lchown: invalid argument',
            "/a b belongs to user 0 and group -2",
            False,
            True,
        ),
        (
            f'failed to setxattr "{PLACE}/bin/x" for key "security.ima": operation not permitted',
            "/bin/x has the attribute security.ima, which cannot be set here (operation not",
            False,
            False,
        ),
        (f"mkdir {PLACE}/{'n' * 300}: file name too long", ": file name too long", False, False),
        (f"mknod {PLACE}/dev/x: operation not permitted", "/dev/x: operation not", False, False),
        (f"mkparent {PLACE}/etc/x: not a directory", "/etc/x: not a directory", False, False),
        (
            f"link {PLACE}/gone {PLACE}/new: no such file or directory",
            "/gone /new: no such file or directory",
            False,
            False,
        ),
        (
            f"write {PLACE}/opt/big: no space left on device",
            "the disk of the image store is full (at /opt/big)",
            True,
            False,
        ),
        (f"mkdir {PLACE}/a: disk quota exceeded", "the image store is full (at /a)", True, False),
        ("unexpected EOF", "a layer is damaged (layer sha256:5f: unexpected EOF)", False, False),
        ("archive/tar: invalid tar header", "a layer is damaged", False, False),
        (
            "mount callback failed on /tmp/containerd-mount12: unhandled tar header type 83",
            "layer sha256:5f: unhandled tar header type 83",
            False,
            False,
        ),
    ],
)
def test_what_is_wrong_with_a_layer_names_the_file(said, words, full, owner):
    found = unpack_error(LAYER + said)
    assert found is not None
    assert words in found.text
    assert (found.full, found.owner) == (full, owner)
    assert "containerd-mount" not in found.text


def test_a_full_disk_is_told_wherever_it_shows():
    found = unpack_error("failed to copy: failed to write: no space left on device")
    assert found is not None
    assert found.full


def test_what_is_not_about_layers_is_left_alone():
    assert unpack_error("connection reset by peer") is None


def test_a_name_with_odd_characters_stays_one_line():
    found = unpack_error(f'{LAYER}failed to Lchown "{PLACE}/a\nb" for UID 70000, GID 1: x')
    assert found is not None
    assert "\n" not in found.text


@pytest.mark.parametrize(
    "name", ["a", "/a", "/containerd-mount", "open /a: b ", 'failed to setxattr "a" for key "']
)
def test_no_name_in_an_image_takes_for_ever_to_read(name):
    """What was read whole took minutes."""
    long = name * ((1 << 20) // len(name))
    found = unpack_error(f'{BAD_LAYER} (x y) to z as "w": open {PLACE}{long}: file name too long')
    assert found is not None
    assert len(found.text) < 20_000
