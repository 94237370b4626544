"""Child processes: told what to run through a socket, heard until they end, gone with their parent."""

import os
import secrets
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from local_azureml import process_environment
from local_azureml.engine import descendants
from local_azureml.engine.channel import Channel
from local_azureml.engine.fork_server import ForkServer, spawn

LIGHT = (  # need no library that the server has imported, nor wait for it
    "local_azureml.engine.jobs.command",
    "local_azureml.engine.serving.script",
)
LOST = {
    "exit": -signal.SIGKILL,
    "error": {"code": "SystemError", "message": "the process was killed, probably out of memory"},
}
TRIES = 3  # for a child that the fork server took along when it died
PATIENCE = 10.0  # seconds after which a fork server that stays silent is looked at
SERVER = ForkServer()


class UserError(Exception):
    """What the user gave can't work; the message is the one sentence that says why."""


@dataclass(frozen=True)
class Place:
    """Where a child works: its process group, log, folder and environment."""

    group: int  # 0 for a group of its own
    log: str
    folder: str
    environment: dict[str, str]

    def enter(self) -> "Place":
        """Move this process here, and return the place for its own children."""
        with suppress(ProcessLookupError, PermissionError):
            os.setpgid(0, self.group)
        stream = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        os.close(stream)
        sys.stdout.reconfigure(encoding="utf-8", line_buffering=True, errors="backslashreplace")
        sys.stderr.reconfigure(encoding="utf-8", line_buffering=True, errors="backslashreplace")
        os.chdir(self.folder)
        process_environment.leave(*process_environment.PYTHON)
        os.environ.update(process_environment.LIBRARIES | self.environment)
        tempfile.tempdir = None  # what was looked up before the fork
        if self.group == 0:
            descendants.adopt()
        return replace(self, group=os.getpgid(0))


here: Place | None = None  # where this process works, if it is a child
parent: Channel | None = None  # to the process that started it


def warm() -> None:
    """Let the libraries be imported that children need."""
    if sys.platform == "linux":  # elsewhere, libraries that were imported before a fork may fail after it
        SERVER.start()


def cool() -> None:
    """End the server that children are forked from."""
    SERVER.stop()


class Child:
    """A process that runs `entry` ("module:function") on a specification."""

    def __init__(self, entry: str, specification: dict, place: Place | None):
        self.pid: int | None = None  # from its first word on
        self.ended = LOST  # {"exit": its exit status, "error": {"code", "message"} if that is not 0}
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        with theirs:
            _hand_over(theirs.fileno(), entry.partition(":")[0] not in LIGHT)
        self.send({"entry": entry, "specification": specification, "place": place and asdict(place)})

    def fileno(self) -> int:
        return self._channel.fileno()

    def send(self, message: object) -> None:
        """Tell the child something; `receive` finds out where nobody hears it."""
        with suppress(OSError):
            self._channel.send(message)

    def receive(self, timeout: float | None = None) -> object:
        """Return what the child says next, None for its first word and its last.

        TimeoutError after so many seconds, EOFError when it has ended.
        """
        kind, said = self._channel.receive(timeout)
        for descriptor in self._channel.taken():
            with suppress(OSError):  # who asked for it finds out
                _hand_over(descriptor, warm=True)
            os.close(descriptor)
        if kind == "pid":
            self.pid = said
        elif kind == "ended":
            self.ended = said
        return said if kind == "said" else None

    def end(self) -> None:
        """Kill the child, and let it never begin where it has not yet."""
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self._channel.close()


def _hand_over(descriptor: int, warm: bool) -> None:
    """Have a new process get this socket: forked by the server, or a fresh interpreter."""
    if parent:
        parent.send(["child", None], descriptor)
    elif warm and sys.platform == "linux":
        SERVER.fork(descriptor)
    else:
        spawn("child", descriptor)


def join(children: list[Child]) -> None:
    """Return when all these children have ended well; when one did not, end the others and raise why."""
    running = set(children)
    try:
        while running:
            for child in select.select(running, [], [])[0]:
                try:
                    child.receive()
                except EOFError:
                    running.remove(child)
                    if error := child.ended.get("error"):
                        kind = UserError if error["code"] == "UserError" else RuntimeError
                        raise kind(error["message"]) from None
    finally:
        for child in running:
            child.end()


def start(entry: str, specification: dict, folder: Path, log: Path, environment: dict[str, str]) -> "Process":
    """Return at once a child that runs `entry` ("module:function") on `specification`, cwd in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    return Process(entry, specification, folder, log, environment)


class Process:
    """A child that leads a process group, and with which all ends that it started."""

    def __init__(self, entry: str, specification: dict, folder: Path, log: Path, environment: dict[str, str]):
        self._mark = secrets.token_hex(16)
        self._temporary = tempfile.mkdtemp(dir=environment.get("TMPDIR"))
        own = {descendants.MARK: self._mark, "TMPDIR": self._temporary}
        self._task = entry, specification, Place(0, str(log), str(folder), environment | own)
        self._child: Child | None = None
        self._result = LOST
        self._killed = False
        self._ended = threading.Event()
        threading.Thread(target=self._live, name=f"child {entry}", daemon=True).start()

    @property
    def alive(self) -> bool:
        return not self._ended.is_set()

    def wait(self, timeout: float | None = None) -> int | None:
        """Return the exit status, or None if the child still runs after `timeout` seconds."""
        return self._result["exit"] if self._ended.wait(timeout) else None

    def kill(self) -> None:
        """Kill the child and all that it started; one that has not begun yet never does."""
        self._killed = True
        if self._child and self._child.pid:
            if self.alive:  # else another process may have its id by now
                self._kill(self._child.pid)
        elif self._child:
            self._child.end()

    def error(self) -> dict | None:
        """Return why the child failed: {"code": "UserError" or "SystemError", "message": one sentence}."""
        return self._result.get("error")

    def _live(self) -> None:
        try:
            for _ in range(TRIES):
                self._child = Child(*self._task)
                self._follow(self._child)
                if self._child.pid or self._killed:
                    break
            self._result = self._child.ended
        except Exception as error:  # there is no process, or no descriptor, to be had
            message = f"the process could not be started: {error!r}"
            self._result = {"exit": 1, "error": {"code": "SystemError", "message": message}}
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._ended.set()

    def _follow(self, child: Child) -> None:
        """Return when the child has ended, and what it started with it."""
        if self._killed:
            child.end()
        with suppress(EOFError):
            while True:
                try:
                    child.receive(None if child.pid else PATIENCE)
                except TimeoutError:
                    SERVER.kill_if_stopped()
                if self._killed and child.pid:
                    self._kill(child.pid)
        if child.pid:
            _kill_group(child.pid, leader=False)
            descendants.end(self._mark)  # where it could not do that itself

    def _kill(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)  # it still adopts, and starts no more
            descendants.end(self._mark, pid)
        _kill_group(pid)


def _kill_group(pid: int, leader: bool = True) -> None:
    """Kill the group that `pid` leads; where it does not lead one yet, `pid` itself."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        if leader:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
