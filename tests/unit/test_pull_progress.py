"""How far a pull is, for the pulls there are."""

from __future__ import annotations

from agent.core.pull_progress import PullProgress

SIZES = {"config": 100, "a": 1000, "b": 2000, "c": 900}


def pull() -> PullProgress:
    return PullProgress(SIZES, 3, 10.0)


def test_nothing_is_known_at_the_beginning():
    state = pull().state(10.0)
    assert (state.phase, state.done_bytes, state.total_bytes) == ("downloading", 0, 4000)
    assert (state.layers_done, state.layers, state.eta_s) == (0, 3, None)


def test_the_time_left_is_that_of_the_pace_so_far():
    found = pull()
    found.blob("a", 500, complete=False)
    found.blob("b", 500, complete=False)
    state = found.state(12.0)
    assert (state.done_bytes, state.layers_done) == (1000, 0)
    assert state.eta_s == 6.0


def test_what_was_here_before_says_nothing_of_the_pace():
    found = pull()
    for digest in ("config", "b"):
        found.blob(digest, SIZES[digest], complete=True)
    assert found.state(11.0).eta_s is None
    found.blob("a", 400, complete=False)
    state = found.state(12.0)
    assert (state.done_bytes, state.layers_done) == (2500, 1)
    assert state.eta_s == 1500 * 2.0 / 400


def test_all_bytes_here_means_unpacking():
    found = pull()
    for digest in SIZES:
        found.blob(digest, 0, complete=True)
    state = found.state(11.0)
    assert (state.phase, state.done_bytes, state.layers_done) == ("unpacking", 4000, 3)
    assert state.eta_s is None


def test_steps_come_in_any_order_and_never_lead_back():
    found = pull()
    found.blob("a", 900, complete=False)
    found.blob("a", 300, complete=False)
    assert found.state(11.0).done_bytes == 900
    found.blob("a", 5000, complete=False)
    assert found.state(11.0).done_bytes == 1000


def test_a_blob_of_another_image_is_none_of_ours():
    found = pull()
    assert not found.blob("other", 1, complete=True)
    assert found.state(11.0).done_bytes == 0
