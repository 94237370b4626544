"""How long a connection may keep the server waiting."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from local_azureml.listener import Connections

HEAD_SECONDS = 20.0  # for a request's first line and headers
BODY_SECONDS = 60.0  # between two pieces of a body, either way


class TimeoutProtocol(H11Protocol):
    """A connection that is closed when a request's headers, or the next piece of its body, do not come.

    So it is when nobody reads the answer.
    """

    _timer: asyncio.TimerHandle | None = None
    _state: object = None

    def __init__(self, connections: Connections, **of_uvicorn):
        super().__init__(**of_uvicorn)
        self._held = connections

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()

    def _wait(self) -> None:
        """Start the clock anew, unless headers are only trickling in."""
        before, self._state = self._state, self._waited_for()
        working = self.cycle is not None and not self.cycle.response_complete and self._state is None
        self._held.note((self.client, self.server), working)
        if self._state == before == "head" and self._timer:
            return
        self._stop()
        if self._state:
            seconds = HEAD_SECONDS if self._state == "head" else BODY_SECONDS
            self._timer = self.loop.call_later(seconds, self._give_up)

    def _waited_for(self) -> str | None:
        if self.flow.write_paused:
            return "reader"
        if self.conn.their_state is h11.SEND_BODY:
            return "body"
        begun = self.conn.trailing_data[0] or self.cycle is None
        return "head" if self.conn.their_state is h11.IDLE and begun else None

    def _stop(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self.flow.read_paused and self._state != "reader":  # it is we who don't read
            self._wait()
        else:
            self.transport.abort()
