"""A running emulator: its data folder, its port, the HTTPS server and the processes behind it."""

import argparse
import os
import re
import sqlite3
import tempfile
import threading
from functools import partial
from pathlib import Path

import filelock

from local_azureml import identifiers
from local_azureml.context import Context
from local_azureml.engine import processes
from local_azureml.engine.chat_completion import checkpoint
from local_azureml.engine.processes import UserError
from local_azureml.errors import full_disk
from local_azureml.faults import Faults
from local_azureml.listener import Connections, Listener

EXAMINED_WITHIN = 180  # seconds, the imports counted


class UsageError(Exception):
    """Something that the person at the command line can set right; ends with exit status 2."""


def bind(port: int) -> Listener:
    """Return a socket that listens on loopback at `port`, or at a free port for 0."""
    try:
        return Listener(port, Connections())
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"port {port} cannot be used ({error}); choose another with --port, or none"
        ) from None


def base_model(folder: Path | None) -> Path:
    """Return the checkpoint folder to serve as the registry's model, after a look at what lies in it."""
    folder = (folder or identifiers.SMALL_MODEL).expanduser().resolve()
    try:
        checkpoint.check(folder)
        if not folder.samefile(identifiers.SMALL_MODEL):
            examine(folder)
    except UserError as error:
        raise UsageError(f"--base-model {folder}: {error}") from None
    return folder


def examine(base: Path) -> None:
    """Raise where transformers can't load, train and ask the model in a folder: tried without its weights."""
    with tempfile.TemporaryDirectory() as name:
        entry, place = "local_azureml.engine.chat_completion.loading:examine_base_model", Path(name)
        tried = processes.start(entry, {"folder": str(base)}, place, place / "log.txt", {})
        if tried.wait(EXAMINED_WITHIN) is None:
            tried.kill()
            raise UserError(f"its chat template wrote no answer within {EXAMINED_WITHIN} s")
        if tried.wait():
            raise UserError(tried.error()["message"])


def data_folder(folder: Path) -> Path:
    """Return the folder for the state, made where it is not there and closed to others where it is ours."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (folder / "state.sqlite").exists() or not any(folder.iterdir()):
            folder.chmod(0o700)
        found = folder.stat()
    except OSError as error:
        raise UsageError(f"--data-dir {folder} cannot be used: {error.strerror}") from None
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UsageError(
            f"--data-dir {folder} is open to other users, who could read tokens and data there: "
            "chmod 700 it, or give a folder of your own"
        )
    return folder.resolve()


def opened(folder: Path, *options) -> Context:
    """Return the context that is kept in a folder; refuse one whose state can't be read."""
    try:
        return Context(folder, *options)
    except sqlite3.DatabaseError as error:
        if full_disk(error):
            raise
        message = f"--data-dir {folder}: its state.sqlite can't be read ({error}): remove it, or give another"
        raise UsageError(message) from None


def claimed(folder: Path) -> filelock.FileLock:
    """Return the lock that keeps a second emulator out of the folder while this process lives."""
    try:
        lock = filelock.FileLock(folder / "lock", blocking=False)
        lock.acquire()
    except filelock.Timeout:
        raise UsageError(
            f"--data-dir {folder} is in use by another emulator: stop it, or give another"
        ) from None
    return lock


class Server:
    """A running emulator: the HTTPS server in a thread of this process, and the processes behind it."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        import uvicorn

        if options.hub and not re.match("https?://[^/]", options.hub):
            raise UsageError(f"--hub {options.hub} is no address; the real hub is at https://huggingface.co")
        model, faults, folder = base_model(options.base_model), Faults(options.fault), data_folder(folder)
        self._lock = claimed(folder)
        self._listener = bind(options.port)
        settings = (options.poll, faults, options.one_python, options.full_mlflow, options.hub)
        self.context = opened(folder, self._listener.port, model, *settings)
        from local_azureml.app import create_app
        from local_azureml.endpoint_ports import EndpointPorts
        from local_azureml.timeouts import TimeoutProtocol

        self.app = create_app(self.context)
        chain = str(self.context.certificates.chain)
        waits = {"timeout_graceful_shutdown": 2, "timeout_keep_alive": 600}  # clients reuse idle connections
        tls = {"ssl_certfile": chain, "ssl_keyfile": chain}
        protocol = partial(TimeoutProtocol, self._listener.connections)
        kind = {"http": protocol, "ws": "none", "lifespan": "off", "proxy_headers": False}
        self._server = uvicorn.Server(uvicorn.Config(self.app, log_level="warning", **kind, **tls, **waits))
        self.context.endpoint_ports = EndpointPorts(self._server)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})
        self._warm = False

    def __enter__(self) -> "Server":
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            self._thread.join(0.02)
        from local_azureml.control_plane import endpoints

        try:
            endpoints.reopen(self.context)
        except BaseException:
            self.__exit__()
            raise
        return self

    def warm(self) -> "Server":
        """Import what jobs need behind the scenes, from the first compute on, and return this server."""

        def begin() -> None:
            self.context.preload = idle
            processes.warm()
            self.context.runs.warm()

        idle, self.context.preload, self._warm = self.context.preload, begin, True
        return self

    def __exit__(self, *_) -> None:
        self.summary = summary(self.context)
        self.context.jobs.stop()
        self.context.deployments.stop()
        self.context.runs.close()
        for connection in list(self._server.server_state.connections):  # which clients keep open, idle
            connection.loop.call_soon_threadsafe(connection.transport.abort)
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
        if self._warm:  # else others of this process use it
            processes.cool()
        self.context.close()
        self._lock.release()


def summary(context: Context) -> str:
    """Return a line for each thing that Azure would have billed, and for each that was left running."""
    bills = context.meter.bills()
    left = context.jobs.running() + context.deployments.running()
    lines = [f"Azure would have billed: {bill}" for bill in bills] or ["Azure would have billed: nothing"]
    lines += [f"left running, stopped now: {name}" for name in left] or ["still running: nothing"]
    return "\n".join(lines)
