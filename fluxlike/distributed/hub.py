"""Where the ranks' connections meet: a thread on rank 0 that hears of a failure, and tells every rank."""

from __future__ import annotations

import contextlib
import json
import secrets
import selectors
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Hub", "Message", "keep_alive", "line_of"]

Message = dict[str, Any]

#: Seconds that a first sign of trouble waits for a better one. An error of the network itself is mostly
#: the trace of another rank's end; and a whole job that is killed at once has nobody left to tell.
_PATIENCE = {"failed": 0.0, "interrupted": 0.0, "vanished": 0.3, "lost": 1.0}

#: What is told where several are known: the first of these.
_WEIGHT = {"failed": 0, "interrupted": 1, "vanished": 2, "lost": 3}

_LONGEST = 16384  # bytes of a line; what is longer comes from no rank


def line_of(message: Message, /) -> bytes:
    """A message as it is sent: a line of JSON."""
    return json.dumps(message).encode() + b"\n"


def keep_alive(line: socket.socket, /) -> None:
    """Let the kernel find out, in half a minute, that the machine at the other end is gone."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


@dataclass
class _Member:
    """A connection, and the rank at its other end once that has said who it is."""

    line: socket.socket
    unread: bytes = b""
    rank: int | None = None
    where: str = ""
    state: str = "running"
    when: str = ""


@dataclass
class Hub:
    """Hears every rank: what failed, what ended, whose connection broke; and sends all the one verdict.

    A message of a rank is ``{"state": "failed" | "lost" | "interrupted" | "ended", "message": …}``,
    ``"lost"`` for an error of the network. A connection that breaks while its rank is running: that rank
    has vanished. The verdict names one rank, ``{"rank", "state", "message", "when", "ended"}``. Once that
    rank has gone (or 3 seconds later) all connections are closed, so that it can be the first to end, as
    torchrun reports the first.

    Args:
        ranks: how many connections there will be.
        everywhere: listen to other machines too, not only to this one. (default: False)

    Raises:
        OSError: there is no port to listen on.

    Attributes:
        port: where it listens.
        token: what a rank has to show first; who does not is let go.
        over: set when every rank has ended, or every connection is closed after the verdict.

    Example:
        >>> hub = Hub(1)
        >>> line = socket.create_connection(("127.0.0.1", hub.port))
        >>> line.sendall(line_of({"token": hub.token, "rank": 0, "where": "here"}))
        >>> line.sendall(line_of({"state": "failed", "message": "ValueError: no"}))
        >>> lines = line.makefile()
        >>> json.loads(lines.readline())
        {'welcome': True}
        >>> verdict = json.loads(lines.readline())
        >>> verdict["rank"], verdict["state"], verdict["message"]
        (0, 'failed', 'ValueError: no')
        >>> lines.close(), line.close(), hub.over.wait(5)
        (None, None, True)
    """

    ranks: int
    everywhere: bool = False
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._listener = _listener(self.everywhere, self.ranks)
        self.port: int = self._listener.getsockname()[1]
        self._wake, self._woken = socket.socketpair()
        self._members: list[_Member] = []
        self._known: dict[int, _Member] = {}
        self._causes: list[Message] = []
        self._verdict: Message = {}
        self._decide_at: float | None = None
        self._leave_at: float | None = None
        threading.Thread(target=self._serve, name="fluxlike: hub of the ranks", daemon=True).start()

    def close(self) -> None:
        """Stop without a verdict."""
        self._wake.close()

    def forget(self) -> None:
        """Close what a forked child has inherited, so that a connection ends with its own process."""
        for line in (self._listener, self._wake, self._woken, *(member.line for member in self._members)):
            line.close()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._is_done():
                for key, _ in selector.select(self._seconds_left()):
                    if key.fileobj is self._woken:
                        self._leave_at = 0.0
                    elif key.fileobj is self._listener:
                        self._accept(selector)
                    else:
                        self._read(selector, key.data)
                if self._decide_at is not None and time.monotonic() >= self._decide_at:
                    self._tell()
        self.over.set()
        self.forget()

    def _is_done(self) -> bool:
        here = [member.rank for member in self._members if member.rank is not None]
        if self._leave_at is not None:
            return self._verdict.get("rank") not in here or time.monotonic() >= self._leave_at
        first = self._known.get(0)
        ended = first is not None and first.state == "ended"
        return ended and len(self._known) == self.ranks and not any(here)

    def _seconds_left(self) -> float | None:
        until = self._leave_at if self._leave_at is not None else self._decide_at
        return None if until is None else max(until - time.monotonic(), 0.0)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        line, _ = self._listener.accept()
        line.settimeout(1.0)
        keep_alive(line)
        member = _Member(line)
        self._members.append(member)
        selector.register(line, selectors.EVENT_READ, member)

    def _read(self, selector: selectors.BaseSelector, member: _Member) -> None:
        try:
            received = member.line.recv(65536)
        except OSError:
            received = b""
        *lines, member.unread = (member.unread + received).split(b"\n")
        understood = all(self._hear(member, line) for line in lines)
        if not (received and understood and len(member.unread) < _LONGEST):
            selector.unregister(member.line)
            member.line.close()
            self._members.remove(member)
            if member.rank is not None and member.state == "running":
                self._note(member, "vanished", member.where)

    def _hear(self, member: _Member, line: bytes) -> bool:
        try:
            message = json.loads(line)
            if member.rank is not None:
                self._note(member, message["state"], str(message.get("message", "")))
            elif message["token"] == self.token:
                member.rank, member.where = int(message["rank"]), str(message["where"])
                self._known[member.rank] = member
                _send(member, {"welcome": True})
            return member.rank is not None
        except (ValueError, KeyError, TypeError):
            return False

    def _note(self, member: _Member, state: str, message: str) -> None:
        member.state, member.when = state, time.strftime("%H:%M:%S")
        if state == "ended" or self._leave_at is not None:
            return
        cause = {"rank": member.rank, "state": state, "message": message, "when": member.when}
        self._causes.append(cause)
        until = time.monotonic() + _PATIENCE[state]
        self._decide_at = until if self._decide_at is None else min(until, self._decide_at)

    def _tell(self) -> None:
        ended = [[rank, member.when] for rank, member in self._known.items() if member.state == "ended"]
        cause = min(self._causes, key=lambda cause: _WEIGHT[cause["state"]])
        self._verdict = cause | {"ended": sorted(ended)}
        for member in self._members:
            if member.rank is not None:
                _send(member, self._verdict)
        self._decide_at, self._leave_at = None, time.monotonic() + 3.0


def _send(member: _Member, message: Message) -> None:
    with contextlib.suppress(OSError):  # it is leaving, and hears the end of its own connection
        member.line.sendall(line_of(message))


def _listener(everywhere: bool, backlog: int) -> socket.socket:
    if not everywhere:
        return socket.create_server(("127.0.0.1", 0), backlog=backlog)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=backlog)
