"""The ports of the endpoints: each has one of its own, so that its path is /score, as on Azure."""

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import uvicorn

from local_azureml.listener import Connections, Listener
from local_azureml.timeouts import TimeoutProtocol

log = logging.getLogger(__name__)


class EndpointPorts:
    """Opens and closes the endpoints' ports, at which the server answers too.

    Their connections are counted apart: whoever floods an endpoint takes no place of the control plane.
    """

    def __init__(self, server: uvicorn.Server):
        self._server, self._connections = server, Connections()
        self._endpoints: dict[int, str] = {}  # by their ports
        self._served: dict[int, asyncio.Server] = {}  # by their ports, in the server's thread alone
        self._lock = threading.Lock()

    def endpoint(self, port: int) -> str | None:
        """Return the endpoint that has a port."""
        return self._endpoints.get(port)

    def open(self, endpoint: str, preferred: int = 0) -> int:
        """Return the endpoint's port, from now on open: the preferred one, unless it is taken."""
        with self._lock:
            for port, name in self._endpoints.items():
                if name == endpoint:
                    return port
            try:
                listener = Listener(preferred, self._connections)
            except OSError:
                if not preferred:
                    raise
                listener = Listener(0, self._connections)
                log.warning(
                    "port %d, which endpoint %s had, is taken: its address is at port %d from now on",
                    *(preferred, endpoint, listener.port),
                )
            self._endpoints[listener.port] = endpoint
            self._soon(self._start, listener)
            return listener.port

    def close(self, endpoint: str) -> None:
        """Close an endpoint's port at once, and its connections when what is asked there is answered."""
        with self._lock:
            for port in [port for port, name in self._endpoints.items() if name == endpoint]:
                del self._endpoints[port]
                self._soon(self._stop, port)

    def _soon(self, act: Callable, *arguments) -> None:
        """Let the server's thread do something; nobody waits for it, who may hold what it waits for."""
        with suppress(RuntimeError):  # it has ended
            self._server.servers[0].get_loop().call_soon_threadsafe(act, *arguments)

    def _start(self, listener: Listener) -> None:
        self._starting = asyncio.ensure_future(self._serve(listener))  # nothing else would hold it

    async def _serve(self, listener: Listener) -> None:
        config, shared = self._server.config, {"server_state": self._server.server_state, "app_state": {}}
        protocol = partial(TimeoutProtocol, self._connections, config=config, **shared)
        loop = asyncio.get_running_loop()
        made = await loop.create_server(protocol, sock=listener, ssl=config.ssl, backlog=config.backlog)
        self._server.servers.append(made)  # which it closes at its end
        self._served[listener.port] = made
        if listener.port not in self._endpoints:  # closed meanwhile
            self._stop(listener.port)

    def _stop(self, port: int) -> None:
        if made := self._served.pop(port, None):
            made.close()
            self._server.servers.remove(made)
        for connection in list(self._server.server_state.connections):
            if connection.server[1] == port:
                connection.shutdown()
