"""Owners changed inside a tar stream, and nothing else; Python's tarfile is the judge."""

from __future__ import annotations

import hashlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.containerd.owner_filter import BLOCK, OVERFLOW_ID, OwnerFilter

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
HUGE = 1516583083
LONG = "d/" * 120 + "file"


def member(name, uid=0, gid=0, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.uid, info.gid, info.size, info.mtime = uid, gid, len(data), 1700000000
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def archive(members, form):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[form]) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def filtered(data):
    out = io.BytesIO()
    report = OwnerFilter(io.BytesIO(data), out.write).run()
    assert report.diff_id == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert report.applied == f"sha256:{hashlib.sha256(out.getvalue()).hexdigest()}"
    return out.getvalue(), report


def contents(data, *, squash=False):
    """Everything tarfile reads of an archive; with `squash` the owners as they should become."""
    found = []
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for info in tar:
            ids = [
                OVERFLOW_ID if squash and not 0 <= id <= 65535 else id
                for id in (info.uid, info.gid)
            ]
            file = tar.extractfile(info) if info.isreg() else None
            rest = {k: v for k, v in info.pax_headers.items() if k not in ("uid", "gid")}
            found.append(
                (info.name, info.type, info.mode, info.linkname, *ids, rest, file and file.read())
            )
    return found


@pytest.mark.parametrize(
    ("form", "members", "files", "example", "id"),
    [
        ("ustar", [member("a", 65535, 65535, b"x" * 600)], 0, "", 0),
        ("ustar", [member("a", 65536, 0, b"x" * 600), member("b", 5, 6)], 1, "a", 65536),
        ("ustar", [member("b"), member("a", 0, 2097151, b"x")], 1, "a", 2097151),
        ("gnu", [member("a", HUGE, HUGE, b"x"), member("b", 0, HUGE)], 2, "a", HUGE),
        ("gnu", [member(LONG, HUGE, 0, b"x" * 513)], 1, LONG, HUGE),
        ("pax", [member("a", HUGE, 0, b"x"), member("b", 1, 1, b"y")], 1, "a", HUGE),
        ("pax", [member(LONG + "\u00fc", 70000, 1, b"x")], 1, LONG + "\u00fc", 70000),
        ("pax", [member("a", 0, 10**12, b"x")], 1, "a", 10**12),
        ("pax", [member("d", HUGE, HUGE, type=tarfile.DIRTYPE)], 1, "d/", HUGE),
        ("gnu", [member("l", HUGE, 0, type=tarfile.SYMTYPE, linkname="x" * 200)], 1, "l", HUGE),
        ("gnu", [member("l", HUGE, 0, type=tarfile.LNKTYPE, linkname="a")], 1, "l", HUGE),
        ("pax", [member("f", HUGE, 0, type=tarfile.FIFOTYPE)], 1, "f", HUGE),
        ("pax", [member("a", HUGE, 0, b"y", pax_headers={"comment": "50 uid=99999\n"})], 1, "a", 0),
        ("pax", [member(".wh.a", HUGE, HUGE)], 1, ".wh.a", HUGE),
    ],
)
def test_owners_that_no_node_has_become_the_overflow_id(form, members, files, example, id):
    data = archive(members, form)
    out, report = filtered(data)
    assert len(out) == len(data)
    assert contents(out) == contents(data, squash=True)
    assert (report.files, report.example) == (files, example)
    assert report.id == (id or report.id)
    if not files:
        assert out == data


def test_records_of_a_pax_header_count_over_the_header_itself():
    info, data = member("a", 5, 6, b"x", pax_headers={"uid": "99999", "gid": "7"})
    out, report = filtered(archive([(info, data)], "pax"))
    assert contents(out)[0][4:6] == (OVERFLOW_ID, 7)
    assert (report.files, report.id) == (1, 99999)


def test_an_old_gnu_sparse_map_that_goes_on_is_no_header():
    info, _ = member("sparse", 0, 0)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[124:136] = b"%011o\0" % BLOCK
    header[482] = 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    more = bytearray(BLOCK)
    more[504] = 1
    foreign = member("b", HUGE, 0)[0].tobuf(tarfile.GNU_FORMAT)
    # The map's blocks and the data look like headers with owners, but are none.
    data = bytes(header) + bytes(more) + foreign[:504] + b"\0" * 8 + foreign + foreign
    out, report = filtered(data + b"\0" * 1024)
    assert report.files == 1
    assert out[: 4 * BLOCK] == data[: 4 * BLOCK]
    assert out[4 * BLOCK : 5 * BLOCK] != foreign


@pytest.mark.parametrize(
    "tail",
    [b"", b"\0" * 512, b"\0" * 10240, b"garbage", b"\0" * 1024 + b"garbage behind the end" * 99],
)
def test_what_follows_the_end_passes_as_it_is(tail):
    whole = member("a", HUGE, 0, b"")[0].tobuf(tarfile.GNU_FORMAT) + tail
    out, report = filtered(whole)
    assert report.files == 1
    assert out[BLOCK:] == whole[BLOCK:]


@pytest.mark.parametrize("cut", [100, 512, 700, 1024, 1536])
def test_a_stream_that_breaks_off_passes_as_far_as_it_goes(cut):
    data = archive([member("a", 5, 6, b"x" * 700), member("b", 5, 6, b"y")], "pax")[:cut]
    assert filtered(data)[0] == data


def test_a_header_with_a_wrong_checksum_ends_the_changes():
    data = bytearray(archive([member("a", HUGE, 0), member("b", HUGE, 0)], "gnu"))
    data[0] ^= 1
    out, report = filtered(bytes(data))
    assert out == bytes(data)
    assert report.files == 0


@given(st.binary(max_size=3000))
def test_junk_passes_unchanged(data):
    assert filtered(data)[0] == data


IDS = st.sampled_from([0, 1, 65535, 65536, 2097151, 2097152, HUGE, 2**32 - 1, 2**40])
MEMBERS = st.lists(
    st.builds(
        member,
        st.text("ab/\u00fc", min_size=1, max_size=150).filter(lambda name: name.strip("/")),
        IDS,
        IDS,
        st.binary(max_size=1500),
    ),
    max_size=6,
)


@given(MEMBERS, st.sampled_from(["gnu", "pax"]))
def test_any_archive_keeps_all_but_its_owners(members, form):
    data = archive(members, form)
    out, report = filtered(data)
    assert contents(out) == contents(data, squash=True)
    owners = [(info.uid, info.gid) for info, _ in members]
    assert report.files == sum(max(pair) > 65535 for pair in owners)
