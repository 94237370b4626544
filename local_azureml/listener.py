"""The sockets that clients connect to: there is room for the next, whoever else holds connections open."""

import resource
import socket
from contextlib import suppress

DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # -1 is any number
# a quarter for the control plane, one for endpoints, and one for the connections to their deployments
MOST = min(512, DESCRIPTORS // 4) if DESCRIPTORS >= 0 else 512
Address = tuple[str, int]
Ends = tuple[Address, Address]  # the client's, from where it may reach other listeners too, and ours


class Connections:
    """The connections of some listeners: of too many, the one that has kept us waiting longest is closed.

    One whose request is being worked on is never closed.
    """

    def __init__(self):
        self._waiting: dict[Ends, socket.socket] = {}  # for its client, longest first
        self._working: dict[Ends, socket.socket] = {}  # on its request

    def add(self, ends: Ends, connection: socket.socket) -> None:
        """Take a new connection, for which another may be closed."""
        self._waiting[ends] = connection
        if len(self._waiting) + len(self._working) > MOST:
            self._close_one()

    def _close_one(self) -> None:
        for held in (self._waiting, self._working):
            for ends in [ends for ends, connection in held.items() if connection.fileno() < 0]:
                del held[ends]  # closed by its client
        if self._waiting and len(self._waiting) + len(self._working) > MOST:
            longest = self._waiting.pop(next(iter(self._waiting)))
            with suppress(OSError):
                longest.shutdown(socket.SHUT_RDWR)

    def note(self, ends: Ends, working: bool) -> None:
        """Note that a connection's request is worked on, or that its client is waited for from now on."""
        if connection := self._waiting.pop(ends, None) or self._working.pop(ends, None):
            (self._working if working else self._waiting)[ends] = connection


class Listener(socket.socket):
    """A socket on loopback, at a port or at a free one for 0, whose connections are counted."""

    def __init__(self, port: int, connections: Connections):
        # With the protocol named, asyncio turns Nagle's delay off; else each answer waits 40 ms for an ACK.
        super().__init__(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self.connections = connections
        try:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was ours is free at once
            self.bind(("127.0.0.1", port))
            self.listen()  # only then is a port surely ours; clients may connect, and wait for a moment
        except (OSError, OverflowError):
            self.close()
            raise
        self.address: Address = self.getsockname()

    @property
    def port(self) -> int:
        """Return the port, which is another one than asked for 0."""
        return self.address[1]

    def accept(self) -> tuple[socket.socket, Address]:
        connection, client = super().accept()
        self.connections.add((client, self.address), connection)
        return connection, client
