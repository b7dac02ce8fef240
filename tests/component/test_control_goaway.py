"""A GOAWAY comes between a server's frames, wherever the bytes are cut, and breaks none of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from agent.control.goaway import CONTINUATION, END_HEADERS, GOAWAY, HEADERS, FrameWatch


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    payload: bytes

    @property
    def raw(self) -> bytes:
        head = len(self.payload).to_bytes(3, "big") + bytes([self.kind, self.flags])
        return head + (1).to_bytes(4, "big") + self.payload


SETTINGS = Frame(4, 0, b"\0\1\0\0\0\0")
payloads = st.binary(max_size=40) | st.just(b"\x07" * 20000)
plain = st.builds(Frame, st.sampled_from([0, 3, 4, 6, 7, 8]), st.integers(0, 1), payloads)


def _block(payloads: list[bytes]) -> list[Frame]:
    kinds = [HEADERS] + [CONTINUATION] * (len(payloads) - 1)
    frames = [Frame(kind, 0, payload) for kind, payload in zip(kinds, payloads, strict=True)]
    return [*frames[:-1], Frame(kinds[-1], END_HEADERS, payloads[-1])]


blocks = st.lists(payloads, min_size=1, max_size=3).map(_block)
streams = st.lists(plain.map(lambda frame: [frame]) | blocks, max_size=12)


def _chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    marks = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(marks)]


@given(streams, st.lists(st.integers(0, 1 << 20), max_size=12), st.integers(0, 12))
def test_a_goaway_never_breaks_a_frame_or_a_header_block(
    units: list[list[Frame]], cuts: list[int], asked_at: int
) -> None:
    units = [[SETTINGS], *units]
    data = b"".join(frame.raw for unit in units for frame in unit)
    watch = FrameWatch()
    out, asking, put = b"", False, False
    for index, chunk in enumerate(_chunks(data, cuts)):
        if index == asked_at:
            asking = not watch.between_frames
            put = watch.between_frames
            out += GOAWAY if put else b""
        place = watch.feed(chunk)
        if asking and place is not None:
            asking, put = False, True
            chunk = chunk[:place] + GOAWAY + chunk[place:]
        out += chunk
    assert watch.between_frames
    if not put:
        assert asked_at > len(cuts), "asked before the last bytes came, there was a place"
        return
    whole = [b"".join(frame.raw for frame in unit) for unit in units]
    allowed = [b"".join(whole[:n]) + GOAWAY + b"".join(whole[n:]) for n in range(1, len(whole) + 1)]
    assert out in allowed


def test_there_is_no_place_before_the_first_frame() -> None:
    watch = FrameWatch()
    assert not watch.between_frames
    assert watch.feed(b"") is None
    assert watch.feed(SETTINGS.raw[:9]) is None
    assert not watch.between_frames
    assert watch.feed(SETTINGS.raw[9:] + b"\0") == 6
    assert not watch.between_frames


def test_the_frame_is_what_the_rfc_says() -> None:
    assert int.from_bytes(GOAWAY[:3], "big") == len(GOAWAY) - 9 == 8
    assert (GOAWAY[3], GOAWAY[4], GOAWAY[5:9]) == (7, 0, bytes(4))
    assert int.from_bytes(GOAWAY[9:13], "big") == 2**31 - 1
    assert GOAWAY[13:] == bytes(4)
