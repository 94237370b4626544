"""What a process and its child tell each other: lines of JSON, with file descriptors in tow."""

import json
import socket
from contextlib import suppress


class Channel:
    """One end of a socket; the other end's process is gone when this one reads EOFError."""

    def __init__(self, end: socket.socket):
        self._socket, self._read = end, b""
        self._descriptors: list[int] = []

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: object, *descriptors: int) -> None:
        """Write a message; OSError where nobody is left to read it."""
        line = json.dumps(message).encode() + b"\n"
        sent = socket.send_fds(self._socket, [line], descriptors) if descriptors else 0
        self._socket.sendall(line[sent:])

    def receive(self, timeout: float | None = None):
        """Return the next message; TimeoutError after so many seconds, EOFError where none will come."""
        self._socket.settimeout(timeout)
        while b"\n" not in self._read:
            try:
                fresh, descriptors, *_ = socket.recv_fds(self._socket, 1 << 16, 16)
            except ConnectionResetError:
                fresh, descriptors = b"", []
            except BlockingIOError:  # of a timeout of nothing
                raise TimeoutError from None
            self._descriptors += descriptors
            if not fresh:
                raise EOFError
            self._read += fresh
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)

    def taken(self) -> list[int]:
        """Return the descriptors that came along since the last call; they are the caller's to close."""
        taken, self._descriptors = self._descriptors, []
        return taken

    def close(self) -> None:
        """End the conversation, for the other side and for a thread that waits in `receive`."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
