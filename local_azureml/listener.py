"""The socket that clients connect to: it has room for the next one, whoever else holds connections open."""

import resource
import socket
from contextlib import suppress

DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # one for each connection; -1 is any number
MOST = min(512, DESCRIPTORS // 2) if DESCRIPTORS >= 0 else 512
Address = tuple[str, int]


class Listener(socket.socket):
    """A listening socket that closes, of too many connections, the one that has kept us waiting longest.

    One whose request is being worked on is never closed.
    """

    def __init__(self):
        # With the protocol named, asyncio turns Nagle's delay off; else each answer waits 40 ms for an ACK.
        super().__init__(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._waiting: dict[Address, socket.socket] = {}  # for its client, longest first
        self._working: dict[Address, socket.socket] = {}  # on its request

    def accept(self) -> tuple[socket.socket, Address]:
        connection, address = super().accept()
        self._waiting[address] = connection
        if len(self._waiting) + len(self._working) > MOST:
            self._close_one()
        return connection, address

    def _close_one(self) -> None:
        for held in (self._waiting, self._working):
            for address in [address for address, connection in held.items() if connection.fileno() < 0]:
                del held[address]  # closed by its client
        if self._waiting and len(self._waiting) + len(self._working) > MOST:
            longest = self._waiting.pop(next(iter(self._waiting)))
            with suppress(OSError):
                longest.shutdown(socket.SHUT_RDWR)

    def note(self, address: Address, working: bool) -> None:
        """Note that a connection's request is worked on, or that its client is waited for from now on."""
        if connection := self._waiting.pop(address, None) or self._working.pop(address, None):
            (self._working if working else self._waiting)[address] = connection
