"""The command line: `run -- COMMAND` and `serve`."""

import argparse
import logging
import os
import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import filelock
import psutil

from local_azureml import cloud, process_environment
from local_azureml import faults as failures
from local_azureml.engine import processes
from local_azureml.engine.chat_completion import checkpoint
from local_azureml.engine.processes import UserError
from local_azureml.errors import full_disk
from local_azureml.faults import Faults

log = logging.getLogger("local_azureml")
WAKE = 0.5  # seconds; a signal that reaches another thread is handled when the main one next wakes
EXAMPLES = """\
examples:
  python -m local_azureml run -- papermill finetune_phi3_ultrachat.ipynb out.ipynb
  python -m local_azureml run --base-model ~/Phi-3-mini-4k-instruct -- jupyter lab
  python -m local_azureml serve --port 8443 --data-dir .local_azureml
"""


class UsageError(Exception):
    """Something that the person at the command line can set right; ends with exit status 2."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the parsed command line; ends the program with status 2 where it can't be."""
    parser = argparse.ArgumentParser(
        "python -m local_azureml",
        description="A private Azure Machine Learning on localhost, for the unmodified Azure ML SDK.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list-faults", action="store_true", help="print the faults that --fault takes")
    commands = parser.add_subparsers(dest="action", metavar="run | serve")
    run = commands.add_parser(
        "run", help="start, run a command against it, stop, say what Azure would have billed"
    )
    run.add_argument("command", nargs=argparse.REMAINDER, help="after --, the command and its arguments")
    serve = commands.add_parser("serve", help="start, print the variables to export, stay")
    for command in (run, serve):
        _add_options(command)
    options = parser.parse_args(arguments)
    if not options.list_faults and options.action is None:
        parser.error("say what to do: run -- COMMAND, serve, or --list-faults")
    return options


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--port", type=int, default=0, help="a free one by default")
    kept = "where state is kept between starts; by default a folder that is removed"
    add("--data-dir", type=Path, help=kept)
    add("--base-model", type=Path, help="a Phi-3 checkpoint folder in place of the tiny model")
    faults = "see --list-faults; the signal USR1 switches all off"
    add("--fault", action="append", default=[], metavar="NAME[=VALUE]", help=faults)
    add("--poll", type=float, default=1.0, help="seconds that Retry-After asks clients to wait")
    alone = "make no environments: run all jobs in the stand-in's own Python"
    add("--one-python", action="store_true", help=alone)


def bind(port: int) -> socket.socket:
    """Return a socket that listens on loopback at `port`, or at a free port for 0."""
    # With the protocol named, asyncio turns Nagle's delay off; else each answer waits 40 ms for an ACK.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"port {port} cannot be used ({error}); choose another with --port, or none"
        ) from None
    return listener


def base_model(folder: Path | None) -> Path:
    """Return the checkpoint folder to serve as the registry's model, after a look at what lies in it."""
    folder = (folder or cloud.SMALL_MODEL).expanduser().resolve()
    try:
        checkpoint.check(folder)
    except UserError as error:
        raise UsageError(f"--base-model {folder}: {error}; give the folder of a Phi-3 checkpoint") from None
    return folder


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


def claimed(folder: Path) -> filelock.FileLock:
    """Return the lock that keeps a second stand-in out of the folder while this process lives."""
    try:
        lock = filelock.FileLock(folder / "lock", blocking=False)
        lock.acquire()
    except filelock.Timeout:
        raise UsageError(
            f"--data-dir {folder} is in use by another stand-in: stop it, or give another"
        ) from None
    return lock


class Server:
    """A running stand-in: the HTTPS server in a thread of this process, and the processes behind it."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        import uvicorn

        model, faults, folder = base_model(options.base_model), Faults(options.fault), data_folder(folder)
        self._lock = claimed(folder)
        self._listener = bind(options.port)
        port = self._listener.getsockname()[1]
        self.cloud = cloud.Cloud(folder, port, model, options.poll, faults, options.one_python)
        from local_azureml.access import Patience
        from local_azureml.app import create_app

        self.app = create_app(self.cloud)
        chain = str(self.cloud.certificates.chain)
        waits = {"timeout_graceful_shutdown": 2, "timeout_keep_alive": 600}  # clients reuse idle connections
        tls = {"ssl_certfile": chain, "ssl_keyfile": chain}
        kind = {"http": Patience, "ws": "none", "lifespan": "off", "proxy_headers": False}
        settings = uvicorn.Config(self.app, log_level="warning", **kind, **tls, **waits)
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})

    def __enter__(self) -> "Server":
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            self._thread.join(0.02)
        return self

    def warm(self) -> "Server":
        """Import what jobs need behind the scenes, from the first compute on, and return this server."""

        def begin() -> None:
            self.app.state.warm = idle
            with processes.STARTING:
                processes.warm()
            self.app.state.tracking.warm()

        idle, self.app.state.warm = self.app.state.warm, begin
        return self

    def __exit__(self, *_) -> None:
        self.summary = summary(self.app)
        self.app.state.jobs.stop()
        self.app.state.deployments.stop()
        self.app.state.tracking.close()
        for connection in list(self._server.server_state.connections):  # which clients keep open, idle
            connection.loop.call_soon_threadsafe(connection.transport.abort)
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
        processes.cool()
        self.cloud.state.close()
        self._lock.release()


def summary(app) -> str:
    """Return a line for each thing that Azure would have billed, and for each that was left running."""
    bills = app.state.cloud.meter.bills()
    left = app.state.jobs.running() + app.state.deployments.running()
    lines = [f"Azure would have billed: {bill}" for bill in bills] or ["Azure would have billed: nothing"]
    lines += [f"left running, stopped now: {name}" for name in left] or ["still running: nothing"]
    return "\n".join(lines)


def run(options: argparse.Namespace, folder: Path) -> int:
    """Return the exit status of the command, run against a stand-in of its own."""
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise UsageError("run needs a command: python -m local_azureml run -- COMMAND")
    if shutil.which(command[0]) is None:
        raise UsageError(f"{command[0]!r} is no program that can be started")
    with Server(options, folder).warm() as server:
        child = failures.adopted() or psutil.Popen(command, env=process_environment.of_command(server.cloud))
        previous = {
            number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)
        }
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())  # Ctrl-C reaches the child by itself
        signal.signal(signal.SIGUSR1, lambda *_: server.cloud.faults.clear())
        failures.kill_later(server.cloud, server.app.state.jobs, child.pid)
        while psutil.wait_procs([child], timeout=WAKE)[1]:
            pass
        status = child.wait()
        _end_left_behind(server.cloud)
        for number, handler in previous.items():
            signal.signal(number, handler)
    print(server.summary, file=sys.stderr)
    return status if status >= 0 else 128 - status


def _end_left_behind(local: cloud.Cloud) -> None:
    """Give what a command started and did not wait for a minute to clean up, then end it."""
    for process in psutil.wait_procs(_left_behind(local), timeout=60)[1]:
        with suppress(psutil.Error):
            process.terminate()


def _left_behind(local: cloud.Cloud) -> list[psutil.Process]:
    """Return what the command started: processes that carry this stand-in's variables and are younger."""
    found, born = [], psutil.Process().create_time()
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # gone meanwhile, or somebody else's
            own = process.environ().get("IDENTITY_HEADER") == local.secret("identity_header")
            if own and process.create_time() > born:
                found.append(process)
    return found


def serve(options: argparse.Namespace, folder: Path) -> int:
    """Keep a stand-in up until it is interrupted; return 0."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with Server(options, folder).warm() as server:
        signal.signal(signal.SIGUSR1, lambda *_: server.cloud.faults.clear())
        print(process_environment.lines(server.cloud))
        print("# ready: run the lines above in the shell that starts your notebook server", flush=True)
        failures.kill_later(server.cloud, server.app.state.jobs, 0)
        while not stop.wait(WAKE):
            pass
    print(server.summary, file=sys.stderr)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Return the program's exit status."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if options.list_faults:
        print(failures.listed())
        return 0
    logging.basicConfig(format="local_azureml: %(message)s")
    log.setLevel(os.environ.get("LOCAL_AZUREML_LOG", "WARNING"))  # INFO shows each request
    process_environment.leave()
    action = {"run": run, "serve": serve}[options.action]
    try:
        if any(fault.startswith("killed") for fault in options.fault) and not options.data_dir:
            raise UsageError("the fault killed needs --data-dir, where what was there is found again")
        if options.data_dir:
            return action(options, options.data_dir.expanduser())
        with tempfile.TemporaryDirectory(prefix="local_azureml-") as folder:
            return action(options, Path(folder))
    except (UsageError, ValueError) as error:
        print(f"local_azureml: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("local_azureml: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (OSError, sqlite3.Error) as error:
        if not (sentence := full_disk(error)):
            raise
        print(f"local_azureml: {sentence}", file=sys.stderr)
        return 1


def in_utf8() -> None:
    """Start this program again where names of files are not in UTF-8, which Python decides once."""
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


if __name__ == "__main__":
    in_utf8()
    sys.exit(main())
