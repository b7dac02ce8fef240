"""The network room opened again: what the operator changed holds at once, or changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.inside.rootless_session import ProbeFailed, Session
from tests.integration.other_machine import FAR_OUTSIDE, OUTSIDE, other_machine
from tests.integration.test_network import DNS_QUERY, ask

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def outside() -> Iterator[int]:
    with other_machine() as port:
        yield port


def test_what_the_operator_denies_holds_for_all_and_changes_with_a_reload(outside) -> None:
    """Two functions stay while one worker after another opens the room with another `deny`."""
    egress = {"all": "all", "lists": ["0.0.0.0/0"]}
    session = Session("network_probe")
    try:
        session.call("open", deny=[f"{FAR_OUTSIDE}/32"])
        slots = {name: session.call("lease", name=name, egress=egress[name]) for name in egress}
        for name in egress:
            session.call("start", name=name)

        def answers(address: str, port: int = outside) -> set[object]:
            return {ask(session, name, "tcp", address, port) for name in egress}

        assert answers(FAR_OUTSIDE) == {"No route to host"}
        assert answers(OUTSIDE) == {"open"}
        for deny in (["198.18.0.0/15", "198.18.77.0/30"], [], ["10.0.0.0/8"], ["0.0.0.0/0"]):
            session.call("close")
            session.call("open", ready=False, deny=deny)
            reached = "No route to host" if deny[:1] == ["0.0.0.0/0"] else "open"
            outer = reached if deny in ([], ["10.0.0.0/8"]) else "No route to host"
            # at once, before anybody is adopted, and after
            assert (answers(FAR_OUTSIDE), answers(OUTSIDE)) == ({reached}, {outer})
            for name, slot in slots.items():
                session.call("adopt", name=name, number=slot["number"], egress=egress[name])
            session.call("ready")
            assert (answers(FAR_OUTSIDE), answers(OUTSIDE)) == ({reached}, {outer})
            for name in egress:
                assert ask(session, name, "udp", "10.0.2.3", 53, DNS_QUERY) in {"answer", "silent"}
                address = slots[name]["address"]
                assert session.call("fetch", address=address)[1] == "hello 172.30.0.1"
    finally:
        session.end()


def test_a_changed_subnet_is_refused_and_changes_nothing(outside) -> None:
    """A reload that names another subnet: what runs keeps its network and its rules."""
    session = Session("network_probe")
    try:
        session.call("open")
        slot = session.call("lease", name="f", egress="none")
        session.call("start", name="f")
        session.call("close")
        with pytest.raises(ProbeFailed) as caught:
            session.call("open", subnet="10.99.0.0/24")
        assert caught.value.kind == "RuntimeUnavailable"
        assert "needs a stop and start of the agent" in caught.value.message
        assert ask(session, "f", "tcp", OUTSIDE, outside) == "No route to host"
        session.call("open", ready=False)
        assert session.call("adopt", name="f", number=slot["number"], egress="none") == slot
    finally:
        session.end()
