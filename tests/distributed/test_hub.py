"""Where the ranks' connections meet: which of several signs of trouble is told, and who is let in."""

import contextlib
import json
import socket
from types import SimpleNamespace

import pytest

from fluxlike.distributed.hub import Hub, line_of

LONG = 120  # seconds that nothing takes, where every core is busy with other tests


class Rank:
    """A rank's end of the connection, as bytes."""

    def __init__(self, hub, rank):
        self.line = socket.create_connection(("127.0.0.1", hub.port), timeout=LONG)
        self.lines = self.line.makefile()
        self.say(token=hub.token, rank=rank, where=f"place {rank}")
        assert self.hear() == {"welcome": True}

    def say(self, **message):
        self.line.sendall(line_of(message))

    def hear(self):
        return json.loads(self.lines.readline() or "null")

    def leave(self):
        self.lines.close()
        self.line.close()


@pytest.fixture
def clock(monkeypatch):
    """What the hub takes for the time, which stands still: what it waits for comes when a test says so."""
    now = SimpleNamespace(seconds=0.0)
    seen = SimpleNamespace(monotonic=lambda: now.seconds, strftime=lambda _: "12:00:00")
    monkeypatch.setattr("fluxlike.distributed.hub.time", seen)
    return now


@pytest.fixture
def meeting(clock):
    with contextlib.ExitStack() as stack:

        def meet(ranks):
            hub = Hub(ranks)
            there = [Rank(hub, rank) for rank in range(ranks)]
            for rank in there:
                stack.callback(rank.leave)
            stack.callback(hub.close)
            return hub, there

        yield meet


def stranger(hub, sent=b"[]\n"):
    """Send what comes from no rank, and see the line closed: what was sent to the hub before, it has read."""
    line = socket.create_connection(("127.0.0.1", hub.port), timeout=LONG)
    with line, contextlib.suppress(ConnectionError):
        line.sendall(sent)
        assert line.recv(100) == b""


def at(clock, seconds, hub):
    """Let the time come, and the hub look at it."""
    stranger(hub)
    clock.seconds = seconds
    stranger(hub)


def told(ranks):
    verdicts = [rank.hear() for rank in ranks]
    assert all(verdict == verdicts[0] for verdict in verdicts)
    return verdicts[0]["rank"], verdicts[0]["state"]


def test_a_failure_is_told_to_all_at_once(meeting):
    _, ranks = meeting(3)
    ranks[2].say(state="failed", message="ValueError: no")
    assert told(ranks) == (2, "failed")  # while the clock stands still


def test_a_connection_that_breaks_is_a_rank_that_vanished(meeting, clock):
    hub, ranks = meeting(3)
    ranks[1].leave()
    at(clock, 0.3, hub)
    verdict = ranks[0].hear()
    assert (verdict["rank"], verdict["state"], verdict["message"]) == (1, "vanished", "place 1")


def test_an_error_of_the_network_waits_for_its_cause(meeting, clock):
    hub, ranks = meeting(4)
    ranks[0].say(state="lost", message="Connection closed by peer")
    at(clock, 0.9, hub)
    ranks[3].leave()
    at(clock, 1.2, hub)
    assert told(ranks[:3]) == (3, "vanished")


def test_an_error_of_the_network_alone_is_told_with_who_has_ended(meeting, clock):
    hub, ranks = meeting(3)
    ranks[1].say(state="ended")
    ranks[1].leave()
    ranks[0].say(state="lost", message="Connection closed by peer")
    at(clock, 1.0, hub)
    verdict = ranks[2].hear()
    assert (verdict["rank"], verdict["state"]) == (0, "lost")
    assert [rank for rank, _ in verdict["ended"]] == [1]


def test_an_error_is_told_before_a_rank_that_vanished_in_the_same_moment(meeting):
    _, ranks = meeting(3)
    ranks[1].leave()
    ranks[2].say(state="failed", message="ValueError: no")
    assert told([ranks[0], ranks[2]]) == (2, "failed")


def test_connections_are_closed_once_the_first_to_fail_has_gone(meeting):
    hub, ranks = meeting(3)
    ranks[1].say(state="failed", message="ValueError: no")
    told(ranks)
    stranger(hub)
    assert not hub.over.is_set()
    ranks[1].leave()
    assert hub.over.wait(LONG)
    assert ranks[0].hear() is None
    assert ranks[2].hear() is None


def test_the_end_of_all_is_no_trouble(meeting):
    hub, ranks = meeting(3)
    for rank in (ranks[0], ranks[2]):
        rank.say(state="ended")
    ranks[2].leave()
    stranger(hub)
    assert not hub.over.is_set()
    ranks[1].say(state="ended")
    ranks[1].leave()
    assert hub.over.wait(LONG)
    assert ranks[0].hear() is None


@pytest.mark.parametrize(
    "sent",
    [
        line_of({"token": "guessed", "rank": 1, "where": ""}),
        line_of({"state": "failed", "message": ""}),
        b"GET / HTTP/1.1\r\n\r\n",
        b"[]\n",
        b"\xff\n",
        b"x" * 100000,
    ],
)
def test_who_is_no_rank_is_let_go_and_disturbs_nobody(meeting, sent):
    hub, ranks = meeting(2)
    stranger(hub, sent)
    ranks[1].say(state="failed", message="ValueError: no")
    assert told(ranks) == (1, "failed")


def test_a_silent_stranger_does_not_keep_the_hub(meeting):
    hub, ranks = meeting(1)
    with socket.create_connection(("127.0.0.1", hub.port)):
        ranks[0].say(state="ended")
        assert hub.over.wait(LONG)
