"""Child processes that start warm: forked from a server that has already imported the libraries."""

import errno
import importlib
import json
import multiprocessing
import os
import secrets
import signal
import sys
import tempfile
import threading
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path

from local_azureml import process_environment
from local_azureml.engine import descendants
from local_azureml.errors import full_disk

CONTEXT, COLD = multiprocessing.get_context("forkserver"), multiprocessing.get_context("spawn")
PRELOADED = ["local_azureml.engine.chat_completion.preload"]  # imports that take seconds, for no child again
LIGHT = [
    "local_azureml.engine.jobs.command",
    "local_azureml.engine.serving.script",
]  # need none of that, nor wait for it
LONGEST_FOLDER = 60  # bytes; multiprocessing adds two random names to it
ERROR = "error.json"  # in a child's folder: why it failed
STARTING = threading.Lock()  # also guards every reading of an exit code, which the pipe holds only once


class UserError(Exception):
    """What the user gave can't work; the message is the one sentence that says why."""


def warm() -> None:
    """Start the server that children are forked from; it goes on importing after this returns."""
    if forkserver._forkserver._forkserver_pid is None:
        # Elsewhere than on Linux, libraries that were imported before a fork may fail after it.
        CONTEXT.set_forkserver_preload(PRELOADED if sys.platform == "linux" else [])
        resource_tracker.ensure_running()  # which unblocks interrupts when it starts
        found_by = {"PYTHONPATH": str(Path(__file__).parents[2])}
        with _environment(process_environment.LIBRARIES | found_by), _interrupts_blocked(), short_names():
            forkserver.ensure_running()


def cool() -> None:
    """End the server that children are forked from, whatever it is still importing."""
    server = forkserver._forkserver
    if server._forkserver_pid is not None:
        os.kill(server._forkserver_pid, signal.SIGKILL)
        server._stop()


def start(entry: str, specification: dict, folder: Path, log: Path, environment: dict[str, str]) -> "Process":
    """Return at once a child that runs `entry` ("module:function") on `specification`, cwd in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    (folder / ERROR).unlink(missing_ok=True)
    return Process(entry, specification, folder, log, environment)


class Process:
    """A child that leads its own process group and dies with the process that started it."""

    def __init__(self, entry: str, specification: dict, folder: Path, log: Path, environment: dict[str, str]):
        self.folder, self.log = folder, log
        self._mark = secrets.token_hex(16)
        environment = {**environment, descendants.MARK: self._mark}
        self._warm = entry.partition(":")[0] not in LIGHT
        self._child = (CONTEXT if self._warm else COLD).Process(
            target=_run,
            args=(entry, specification, Place(0, str(log), str(folder), environment)),
            daemon=True,
        )
        self._exit_code: int | None = None
        self._killed = False
        self._started, self._ended = threading.Event(), threading.Event()
        threading.Thread(target=self._live, name=f"child {entry}", daemon=True).start()

    @property
    def pid(self) -> int | None:
        """The process id, as soon as the warm server has forked the child; None if it never could."""
        self._started.wait()
        return self._child.pid

    @property
    def alive(self) -> bool:
        return not self._ended.is_set()

    def wait(self, timeout: float | None = None) -> int | None:
        """Return the exit code, or None if the child still runs after `timeout` seconds."""
        self._ended.wait(timeout)
        return self._exit_code

    def kill(self) -> None:
        """Kill the child and all that it started; one that is not forked yet ends at once."""
        self._killed = True
        if not self._started.is_set():
            self._exit_code = -signal.SIGKILL
            self._ended.set()
        elif self.alive:
            self._kill()

    def error(self) -> dict:
        """Return why the child failed: {"code": "UserError" or "SystemError", "message": one sentence}."""
        if self._exit_code == errno.ENOSPC:
            return {"code": "UserError", "message": full_disk(OSError(errno.ENOSPC, ""))}
        written = self.folder / ERROR
        if written.exists():
            return json.loads(written.read_text())
        if self._exit_code == -signal.SIGKILL and not self._killed:
            return {
                "code": "SystemError",
                "message": "the process was killed, most likely for want of memory",
            }
        return {"code": "SystemError", "message": f"the process ended with exit code {self._exit_code}"}

    def _live(self) -> None:
        try:
            with STARTING, _interrupts_blocked():
                if self._warm:
                    warm()
                self._child.start()
        except (OSError, EOFError) as error:
            self.log.write_text(f"the process could not be started: {error!r}\n")
            self._exit_code = 1
        else:
            self._started.set()
            if self._killed:
                self._kill()
            connection.wait([self._child.sentinel])
            with STARTING:
                self._child.join()
            self._exit_code = self._child.exitcode
            _kill_group(self._child.pid, leader=False)
            descendants.end(self._mark)  # where it could not do that itself
        self._started.set()
        self._ended.set()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._child.pid, signal.SIGSTOP)  # it still adopts, and starts no more
            descendants.end(self._mark, self._child.pid)
        _kill_group(self._child.pid)


@dataclass(frozen=True)
class Place:
    """Where a child works: its process group, log, folder and environment."""

    group: int  # 0 for a group of its own
    log: str
    folder: str
    environment: dict[str, str]

    def enter(self) -> None:
        """Move this process here, and let it die when the process that started it dies."""
        global here
        with suppress(ProcessLookupError, PermissionError):
            os.setpgid(0, self.group)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        stream = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        os.close(stream)
        sys.stdout.reconfigure(encoding="utf-8", line_buffering=True, errors="backslashreplace")
        sys.stderr.reconfigure(encoding="utf-8", line_buffering=True, errors="backslashreplace")
        os.chdir(self.folder)
        process_environment.leave(*process_environment.PYTHON)
        os.environ.update(process_environment.LIBRARIES | self.environment)
        here = replace(self, group=os.getpgid(0))
        if self.group == 0:
            descendants.adopt()
        threading.Thread(target=_die_with_parent, name="parent watch", daemon=True).start()


here: Place | None = None  # a child's own, for the children that it starts


def _run(entry: str, specification: dict, place: Place) -> None:
    place.enter()
    _allow_children()
    module, function = entry.split(":")
    try:
        getattr(importlib.import_module(module), function)(specification)
    except UserError as error:
        _fail("UserError", str(error))
    except Exception as error:
        if full_disk(error):
            sys.exit(errno.ENOSPC)  # there is no room to say more
        traceback.print_exc()
        first = (str(error).strip() or "no message").splitlines()[0]
        _fail("SystemError", f"{type(error).__name__}: {first}")
    finally:
        descendants.end(place.environment[descendants.MARK], os.getpid())


def _allow_children() -> None:
    """Let this child start children of its own, forked from the same warm server."""
    multiprocessing.current_process().daemon = False
    forkserver._forkserver.ensure_running = lambda: (
        None
    )  # else the standard library starts a second, cold one


def _fail(code: str, message: str) -> None:
    print(f"{code}: {message}", flush=True)
    Path(ERROR).write_text(json.dumps({"code": code, "message": message}))
    sys.exit(1)


def _die_with_parent() -> None:
    multiprocessing.parent_process().join()
    if os.getpgid(0) == os.getpid():
        descendants.end(here.environment[descendants.MARK], os.getpid())
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_group(pid: int, leader: bool = True) -> None:
    """Kill the group that `pid` leads; where it does not lead one yet, `pid` itself."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        if leader:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def _interrupts_blocked():
    """Let a child that is being spawned be deaf to Ctrl-C, which would end it while it imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def short_names():
    """Let a server's socket, whose name has a hundred bytes at most, lie in /tmp where TMPDIR is longer."""
    before = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST_FOLDER:
        tempfile.tempdir = "/tmp"
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextmanager
def _environment(variables: dict[str, str]):
    """Set `variables` for as long as a child is being spawned."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
