"""Kill, stop and starve each process and thread of the emulator in turn, under load; show what came of each.

After each accident all that was acknowledged has to be there, every answer to be right or an honest refusal,
all clients to be answered again within a minute, and nobody else to have noticed. The table is kept in
docs/accidents.md. Linux only.
"""

import inspect
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from local_azureml.control_plane.jobs import FINAL
from scenarios import notebook_runs as runs
from scenarios.load import SILENT, Cloud, Load
from scenarios.notebook_runs import DATA, ROOT
from scenarios.table import finish, parse, table

KEPT = ROOT / "docs" / "accidents.md"
HEAD = ("what happens", "answered right", "refused", "all well again", "the job that ran")
SOON = 60.0  # seconds until all has to be well again
WHILE = 15.0  # seconds that something is stopped or starved
COMMAND = "while [ ! -e {} ]; do sleep 0.2; done"
EMULATOR, SERVER = "the emulator", "the fork server"
JOB, SHELL = "a job's process", "a job's command"
CHAT, TEMPLATE = "a chat model's process", "its template's process"
LAUNCHER, SCRIPT = "a scoring script's process", "the script's server"
SHARED = {  # processes that end with another; who is not here, ends alone
    SERVER: {CHAT, TEMPLATE},  # the model's is killed too, so that a server is needed
    CHAT: {CHAT, TEMPLATE},
    LAUNCHER: {LAUNCHER, SCRIPT},
    SCRIPT: {LAUNCHER, SCRIPT},
}
ROLES = (EMULATOR, SERVER, CHAT, TEMPLATE, LAUNCHER, SCRIPT, JOB, SHELL)


@dataclass
class Row:
    """What an accident came to."""

    what: str
    answers: int = 0
    refused: int = 0
    seconds: float | None = None  # from its end until all clients were answered right again
    job: str = ""  # what became of the job that ran
    deviations: list[str] = field(default_factory=list)


def role(process: psutil.Process, emulator: int) -> str:
    """Return what a process of the emulator's is for; "" for one that nobody waits for."""
    words, place = " ".join(process.cmdline()), process.cwd()
    if process.pid == emulator:
        return EMULATOR
    if "script_server.py" in words:
        return SCRIPT
    if "fork_server" in words and process.ppid() == emulator and " serve " in words:
        return SERVER
    if "fork_server" not in words:
        return SHELL if process.name() == "bash" and "/runs/" in place else ""
    if "/runs/" in place:
        return JOB
    if "/deployments/chat" in place:
        return CHAT if os.getpgid(process.pid) == process.pid else TEMPLATE
    return LAUNCHER if "/deployments/script" in place else ""


def there(cloud: Cloud) -> dict[str, psutil.Process]:
    """Return the processes of the emulator by what they are for."""
    emulator = psutil.Process(cloud.emulator.process.pid)
    found = {}
    for process in (emulator, *emulator.children(recursive=True)):
        with suppress(psutil.Error):
            found[role(process, emulator.pid)] = process
    found.pop("", None)
    return found


def stop(process: psutil.Process) -> None:
    """Stop a process for a while."""
    process.suspend()
    time.sleep(WHILE)
    with suppress(psutil.Error):  # it may have been given up
        process.resume()


def starve(process: psutil.Process) -> None:
    """Let a process compute only when nobody else does, on a machine where somebody always does."""
    with starved([thread.id for thread in process.threads()]):
        time.sleep(WHILE)


@contextmanager
def starved(threads: list[int]) -> Iterator[None]:
    """Keep all cores busy, and let these threads have what is left."""
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * os.cpu_count())]
    try:
        for thread in threads:
            _schedule(thread, os.SCHED_IDLE)
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
        for thread in threads:
            _schedule(thread, os.SCHED_OTHER)


def _schedule(thread: int, policy: int) -> None:
    with suppress(ProcessLookupError):
        os.sched_setscheduler(thread, policy, os.sched_param(0))


WAYS: dict[str, Callable[[psutil.Process], None]] = {
    "killed": psutil.Process.kill,
    "stopped": stop,
    "starved": starve,
}


class Stage:
    """An emulator under load, on which accidents are tried."""

    def __init__(self, folder: Path):
        self.cloud, self._folder = Cloud(folder), folder

    def accident(self, who: str, way: str) -> Row:
        """Return the row of one process, killed, stopped or starved."""
        return self._row(f"{who} {way}", who, WAYS[way], way == "killed")

    def starve_threads(self) -> Row:
        """Return the row of all threads of the emulator, starved one after another."""

        def each(emulator: psutil.Process) -> None:
            for thread in emulator.threads():
                with starved([thread.id]):
                    time.sleep(WHILE / 5)

        return self._row("each of the emulator's threads starved in turn", EMULATOR, each)

    def poke(self) -> Row:
        """Return the row of clients that connect to the sockets behind the emulator and say nothing."""

        def twenty_each(_: psutil.Process) -> None:
            place = self._folder / DATA / "tmp"
            names = [file.name for file in place.iterdir() if file.is_socket()]
            handle = os.open(place, os.O_RDONLY)  # its path may be longer than a socket's may be
            for name in names * 20:
                with socket.socket(socket.AF_UNIX) as client, suppress(ConnectionRefusedError):
                    client.connect(f"/proc/self/fd/{handle}/{name}")
            os.close(handle)

        return self._row("its sockets called, and hung up, twenty times", EMULATOR, twenty_each)

    def _row(self, what: str, who: str, happen: Callable[[psutil.Process], None], fatal: bool = False) -> Row:
        """Return what an accident came to; one that is fatal to a job fails it."""
        done = self._folder / "done"
        done.unlink(missing_ok=True)
        job = self.cloud.submit(COMMAND.format(done))
        wait_for(lambda: there(self.cloud).keys() >= set(ROLES))
        before = there(self.cloud)
        with Load(self.cloud) as load:
            if load.well_after(time.monotonic(), SOON) is None:
                raise RuntimeError(f"the load does not run: {load.answers[-4:]}")
            began = time.monotonic()
            if who == SERVER:
                before[CHAT].kill()  # so that a server is needed
            happen(before[who])
            if who == EMULATOR and fatal:
                self.cloud.emulator.kill_and_start_again()
            row = Row(what, seconds=load.well_after(time.monotonic(), SOON))
            done.touch()
            wait_for(lambda: self.cloud.job(job)[0] in FINAL)
        self._judge(row, [said for at, _, said in load.answers if at > began], who == EMULATOR and fatal)
        row.deviations += [f"lost: {path}" for path in load.lost()]
        row.job, reason = self.cloud.job(job)
        row.job += f": {reason}" if reason else ""
        if (row.job != "Completed") != (fatal and who in (EMULATOR, JOB, SHELL)) or row.job == "Failed":
            row.deviations.append(f"the job is {row.job}")
        touched = SHARED.get(who, {who}) if who != EMULATOR else set(ROLES)
        after = there(self.cloud)
        untouched = {CHAT, TEMPLATE, LAUNCHER, SCRIPT} - touched
        row.deviations += [f"{name} is another" for name in untouched if after.get(name) != before[name]]
        return row

    def _judge(self, row: Row, answers: list[str], silence: bool) -> None:
        """Count the answers; only an emulator that is killed may give none."""
        row.answers = answers.count("right")
        row.refused = answers.count("refused")
        for said in set(answers) - {"right", "refused"}:
            if silence and said.startswith(SILENT):
                row.refused += answers.count(said)
            else:
                row.deviations.append(said)
        if row.seconds is None:
            row.deviations.append(f"not well again: {answers[-4:]}")


def wait_for(happens: Callable[[], bool]) -> None:
    """Return when it has happened."""
    until = time.monotonic() + 2 * SOON
    while not happens():
        if time.monotonic() > until:
            raise TimeoutError(f"it never happened: {inspect.getsource(happens)}")
        time.sleep(0.2)


def main() -> int:
    options = parse(__doc__, ROLES)
    began, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="accidents-") as folder:
        stage = Stage(runs.prepare((options.keep or Path(folder)) / "accidents"))
        try:
            for row in every(stage, options.only or ROLES):
                print(*cells(row), *row.deviations, sep=", ", file=sys.stderr)
                rows.append(row)
        finally:
            stage.cloud.emulator.close()
    took = f"{len(rows)} rows in {time.monotonic() - began:.0f} s on {os.cpu_count()} cores"
    took += "; *all well again* counts from an accident's end"
    shown = table(HEAD, map(cells, rows))
    return finish(shown, took, rows, None if options.only else KEPT)


def every(stage: Stage, roles: list[str]) -> Iterator[Row]:
    """Give a row for each process in each way; with the emulator, one for its threads and for its sockets."""
    for who, way in itertools.product(roles, WAYS):
        yield stage.accident(who, way)
    if EMULATOR in roles:
        yield stage.starve_threads()
        yield stage.poke()


def cells(row: Row) -> list[str]:
    """Return the cells of a row of the table."""
    seconds = "never" if row.seconds is None else f"after {row.seconds:.0f} s"
    return [row.what, str(row.answers), str(row.refused), seconds, row.job]


if __name__ == "__main__":
    sys.exit(main())
