"""A process that has imported the libraries: what it forks starts in milliseconds, and owes it nothing.

It is asked for a child by a socket, which the child gets; nobody but the child and who has the other end is
concerned with it after that. So the server may die at any time, and another takes its place.
"""

import atexit
import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from local_azureml import process_environment

PRELOADED = "local_azureml.engine.chat_completion.preload"  # imports that take seconds, for no child again
PACKAGE = Path(__file__).parents[2]
RARELY = 60.0  # seconds between two starts that nobody waits for: what kills a server may kill the next too


class ForkServer:
    """The server as its owner sees it: started when it is first needed, and again when it is gone."""

    def __init__(self):
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._requests: socket.socket | None = None
        self._revived = -RARELY

    def start(self) -> None:
        """Start the server where it does not run; it goes on importing after this returns."""
        with self._lock:
            self._ensure()

    def fork(self, descriptor: int) -> None:
        """Let the server fork a child for this socket, as soon as it has imported all."""
        with self._lock:
            self._ensure()
            try:
                socket.send_fds(self._requests, [b"."], [descriptor])
            except ConnectionError:  # it has died this moment
                self._process.wait()
                self._ensure()
                socket.send_fds(self._requests, [b"."], [descriptor])

    def kill_if_stopped(self) -> None:
        """Kill a server that a signal has stopped, which nobody else would continue."""
        with self._lock, suppress(psutil.Error, AttributeError):
            if psutil.Process(self._process.pid).status() == psutil.STATUS_STOPPED:
                self._process.kill()

    def stop(self) -> None:
        """End the server, whatever it is still importing."""
        with self._lock:
            if self._process:
                self._requests.close()
                self._process.kill()
                self._process.wait()
                self._process = None

    def _ensure(self) -> None:
        if self._process and self._process.poll() is None:
            return
        if self._requests:
            self._requests.close()
        self._requests, theirs = socket.socketpair()
        with theirs:
            self._process = spawn("serve", theirs.fileno(), self._revive)

    def _revive(self, process: subprocess.Popen) -> None:
        """Start another server when this one has died by itself, before it is needed."""
        process.wait()
        with self._lock, suppress(OSError):  # no process is to be had: who needs one finds out
            if process is self._process and time.monotonic() - self._revived > RARELY:
                self._revived = time.monotonic()
                self._ensure()


def spawn(role: str, descriptor: int, wait: Callable = subprocess.Popen.wait) -> subprocess.Popen:
    """Return a fresh interpreter that gets a socket: as a server that is to "serve", or as a "child"."""
    process = subprocess.Popen(
        [sys.executable, "-m", "local_azureml.engine.fork_server", role, str(descriptor)],
        cwd=PACKAGE,  # which Python searches first
        env=os.environ | process_environment.LIBRARIES | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.DEVNULL,
        pass_fds=[descriptor],
        start_new_session=True,  # out of the reach of Ctrl-C
    )
    threading.Thread(target=wait, args=[process], name=f"{role} {process.pid}", daemon=True).start()
    return process


def serve(requests: socket.socket) -> None:
    """Fork a child for each socket that comes along, until nobody is left who could send one."""
    from local_azureml.engine.child import run  # which imports this module

    with suppress(Exception):  # of what is missing or broken; who needs it meets it too, and says so
        importlib.import_module(PRELOADED)
    signal.signal(signal.SIGCHLD, _reap)
    while True:
        asked, descriptors, *_ = socket.recv_fds(requests, 1, 1)
        if not asked:
            return
        for descriptor in descriptors:
            with suppress(BlockingIOError):  # no process more is to be had: the closed socket tells
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    requests.close()
                    return run(socket.socket(fileno=descriptor))
            os.close(descriptor)


def _reap(*_) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _leave() -> None:
    """End this process without the half second in which Python takes the libraries down."""
    with suppress(OSError):  # a full disk
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)  # what a child has to say of its end it has said


if __name__ == "__main__":
    atexit.register(_leave)  # the first to register is the last to be called
    from local_azureml.engine.child import run

    {"serve": serve, "child": run}[sys.argv[1]](socket.socket(fileno=int(sys.argv[2])))
