"""The command line: `run -- COMMAND` and `serve`."""

import argparse
import logging
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import psutil

from local_azureml import faults as failures
from local_azureml import process_environment
from local_azureml.context import Context
from local_azureml.errors import full_disk
from local_azureml.server import Server, UsageError

log = logging.getLogger("local_azureml")
WAKE = 0.5  # seconds; a signal that reaches another thread is handled when the main one next wakes
PROGRAM = "python -m local_azureml" if sys.argv[0].endswith("__main__.py") else "local-azureml"
EXAMPLES = f"""\
examples:
  {PROGRAM} run -- papermill finetune_phi3_ultrachat.ipynb out.ipynb
  {PROGRAM} run --base-model ~/Phi-3-mini-4k-instruct -- jupyter lab
  {PROGRAM} serve --port 8443 --data-dir .local_azureml
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the parsed command line; ends the program with status 2 where it can't be."""
    parser = argparse.ArgumentParser(
        PROGRAM,
        description="An emulator of Azure Machine Learning on localhost, for the unmodified Azure ML SDK.",
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
    add("--base-model", type=Path, help="the folder of a chat model in place of the small one")
    own = "address of another dataset hub than the emulator's, such as https://huggingface.co"
    add("--hub", metavar="URL", help=own)
    faults = "see --list-faults; the signal USR1 switches all off"
    add("--fault", action="append", default=[], metavar="NAME[=VALUE]", help=faults)
    add("--poll", type=float, default=1.0, help="seconds that Retry-After asks clients to wait")
    alone = "make no environments: run all jobs in the emulator's own Python"
    add("--one-python", action="store_true", help=alone)
    whole = "let programs have all of MLflow's server: logged models, traces and what else Azure has not"
    add("--full-mlflow", action="store_true", help=whole)


def run(options: argparse.Namespace, folder: Path) -> int:
    """Return the exit status of the command, run against an emulator of its own."""
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise UsageError(f"run needs a command: {PROGRAM} run -- COMMAND")
    if shutil.which(command[0]) is None:
        raise UsageError(f"no such program: {command[0]!r}")
    with Server(options, folder).warm() as server:
        child = psutil.Popen(command, env=process_environment.of_command(server.context))
        previous = {
            number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)
        }
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())  # Ctrl-C reaches the child by itself
        signal.signal(signal.SIGUSR1, lambda *_: server.context.faults.clear())
        while psutil.wait_procs([child], timeout=WAKE)[1]:
            pass
        status = child.wait()
        _end_left_behind(server.context)
        for number, handler in previous.items():
            signal.signal(number, handler)
    print(server.summary, file=sys.stderr)
    return status if status >= 0 else 128 - status


def _end_left_behind(context: Context) -> None:
    """Give what a command started and did not wait for a minute to clean up, then end it."""
    ours = "IDENTITY_HEADER", context.secret("identity_header")  # kept in a data folder: others may be older
    started = process_environment.processes_with(*ours, after=psutil.Process().create_time())
    for process in psutil.wait_procs(started, timeout=60)[1]:
        with suppress(psutil.Error):
            process.terminate()


def serve(options: argparse.Namespace, folder: Path) -> int:
    """Keep an emulator up until it is interrupted; return 0."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with Server(options, folder).warm() as server:
        signal.signal(signal.SIGUSR1, lambda *_: server.context.faults.clear())
        print(process_environment.lines(server.context))
        print("# ready: run the lines above in the shell that starts your notebook server", flush=True)
        while not stop.wait(WAKE):
            pass
    print(server.summary, file=sys.stderr)
    return 0


class Repeated(logging.Filter):
    """Lets a complaint pass once a minute, however often it is made."""

    def __init__(self):
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        before = self._said.get(record.getMessage(), 0.0)
        if passes := record.created - before > 60 or record.created < before:
            self._said = {record.getMessage(): record.created}
        return passes


def main(arguments: list[str] | None = None) -> int:
    """Return the program's exit status."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if options.list_faults:
        print(failures.listed())
        return 0
    logging.basicConfig(format="local_azureml: %(message)s")
    logging.getLogger("asyncio").addFilter(Repeated())
    log.setLevel(os.environ.get("LOCAL_AZUREML_LOG", "WARNING"))  # INFO shows each request
    process_environment.leave()
    action = {"run": run, "serve": serve}[options.action]
    try:
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


def program() -> None:
    """Run the command line; again where names of files are not in UTF-8, which Python decides once."""
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    sys.exit(main())
