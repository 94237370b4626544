"""Run the main job in other surroundings than those it was made in; tell how it went and what it left.

Each row runs `make run` in a fresh copy of the project. A surrounding is a few shell lines that end in the
command, in a mount namespace of their own where they mount something, and some environment variables. A row
that is not as it should be ends the program with status 1; one that this machine can't have says why. The
table is kept in docs/elsewhere.md.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import pexpect
import psutil
from bs4 import BeautifulSoup

from scenarios.notebook_runs import NOTEBOOK, PATIENCE, ROOT, end
from scenarios.surroundings import SURROUNDINGS, Surrounding
from scenarios.table import finish, parse, table
from tools.sample.knowledge import read_fields

KEPT = ROOT / "docs" / "elsewhere.md"
HEAD = ("where", "exit status", "seconds", "answered right", "left running", "what you read")
MARK = "ELSEWHERE"  # an environment variable that tells what a row started
BEGINS = "# the surrounding is made"
QUESTIONS = 20  # half of the held-out conversations that end with an answer
RIGHT = 7  # of them at least: 9 are, and two may be lost to the surroundings' arithmetic
JOB = [
    "make",
    "--old-file=.venv/installed",
    "run",
    f"PARAMETERS=-p compare_with_base True -p score_samples {QUESTIONS}",
]

MOUNT = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]


@dataclass
class Row:
    """What a run came to."""

    what: str
    status: int | None = None  # the exit status, None where the surrounding can't be had
    seconds: float = 0.0
    right: int | None = None
    left: list[str] = field(default_factory=list)
    reads: str = ""  # the sentence of a job that can't succeed, or why the row was not tried
    deviations: list[str] = field(default_factory=list)


def main() -> int:
    known = {surrounding.name: surrounding for surrounding in SURROUNDINGS}
    options = parse(__doc__, list(known))
    began = time.monotonic()
    rows = [try_in(known[name], options.keep) for name in options.only or known]
    took = f"{len(rows)} rows in {time.monotonic() - began:.0f} s, on {psutil.cpu_count()} cores"
    shown = table(HEAD, map(cells, rows))
    return finish(shown, took, rows, None if options.only else KEPT)


def try_in(surrounding: Surrounding, kept: Path | None = None) -> Row:
    """Return the row of a surrounding, and say how it went."""
    if kept:
        kept.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="elsewhere-", dir=kept and kept.resolve()))
    folder.chmod(0o755)  # another user reads it too
    try:
        row = follow(surrounding, folder)
    finally:
        end(MARK, str(folder))
        if not kept:
            shutil.rmtree(folder)
    verdict = "; ".join(row.deviations) or ("not tried" if row.status is None else "as it should be")
    print(f"{row.what}: {row.seconds:.0f} s, {verdict}", file=sys.stderr)
    return row


def follow(surrounding: Surrounding, folder: Path) -> Row:
    """Return the row of the main job in a surrounding."""
    project, row = copy_of_project(folder / surrounding.project, surrounding.git), Row(surrounding.name)
    began = time.monotonic()
    status = execute(surrounding, project, folder / "log.txt", JOB)
    row.seconds = time.monotonic() - began
    row.left = end(MARK, str(folder), seconds=10)
    said = re.sub(r"\x1b\[[\d;]*m", "", (folder / "log.txt").read_text(errors="replace"))  # colours
    lines = [line for line in said.splitlines() if line.strip()]
    if BEGINS not in lines:
        row.reads = (lines or ["no privilege"])[-1]
        return row
    row.status = status
    row.right = answered_right(project)
    row.deviations = compare(surrounding, row, lines) + half_written(project)
    return row


def copy_of_project(project: Path, git: bool) -> Path:
    """Return a copy of this project's files as they are, with this project's environment."""
    if git:
        quiet = ["-c", "advice.detachedHead=false", "clone", "--quiet"]
        subprocess.run(["git", *quiet, ROOT, project], check=True)
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in filter(None, tracked.stdout.split("\0")):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)  # what is not committed is tried too
    (project / ".venv").symlink_to((ROOT / ".venv").resolve())
    return project


def execute(surrounding: Surrounding, project: Path, log: Path, job: list[str]) -> int:
    """Return the exit status of a job in its surrounding."""
    folder = str(log.parent)
    own = {name: value.format(folder=folder) for name, value in surrounding.variables.items()}
    environment = {**os.environ, MARK: folder, **own}
    lines = ["set -e", surrounding.shell]
    started = ["bash", "-c", 'echo "$0"; exec "$@"', BEGINS, *job]
    command = [*(MOUNT if surrounding.mounts else []), "bash", "-c", "\n".join(lines), "bash", *started]
    try:
        with log.open("w") as written:
            if surrounding.columns:
                return at_terminal(surrounding, command, project, environment, written)
            plain = {"stdin": subprocess.DEVNULL, "stdout": written, "stderr": written}
            return subprocess.run(
                command, cwd=project, env=environment, timeout=PATIENCE, start_new_session=True, **plain
            ).returncode
    except (subprocess.TimeoutExpired, pexpect.TIMEOUT):
        return -signal.SIGKILL


def at_terminal(surrounding: Surrounding, command: list[str], project: Path, environment: dict, log) -> int:
    """Return the exit status of a command at a terminal, where somebody may press Ctrl-C."""
    terminal = pexpect.spawn(
        command[0],
        command[1:],
        cwd=project,
        env=environment,
        timeout=PATIENCE,
        dimensions=(24, surrounding.columns),
        encoding="utf-8",
        codec_errors="replace",
    )
    terminal.logfile_read = log
    if surrounding.interrupt:
        terminal.expect([surrounding.interrupt, pexpect.EOF])
        terminal.sendintr()
    terminal.expect(pexpect.EOF)
    terminal.close()
    return -terminal.signalstatus if terminal.exitstatus is None else terminal.exitstatus


def answered_right(project: Path) -> int | None:
    """Return how many answers of step 8 hold all facts of the ground truth; None without step 8."""
    known = {
        sentence
        for knowledge in read_fields()
        for subject in knowledge.subjects
        for fact in subject.facts.values()
        for sentence in (fact.sentence, fact.detail)
    }
    for notebook in project.glob(f"runs/*/{NOTEBOOK}"):
        for cell in nbformat.read(notebook, as_version=4).cells:
            for output in cell.get("outputs", []):
                page = BeautifulSoup(output.get("data", {}).get("text/html", ""), "html.parser")
                rows = [[cell.text for cell in line.find_all(["th", "td"])] for line in page.find_all("tr")]
                if rows and "ground truth" in rows[0]:
                    truth = rows[0].index("ground truth")
                    needed = [[fact for fact in known if fact in row[truth]] for row in rows[1:]]
                    return sum(
                        bool(facts) and all(fact in row[-1] for fact in facts)
                        for facts, row in zip(needed, rows[1:], strict=True)
                    )
    return None


def half_written(project: Path) -> list[str]:
    """Return a line for each file of the run that can't be read."""
    lines = []
    for file in (project / "runs").rglob("*"):
        try:
            if file.suffix in (".ipynb", ".json"):
                json.loads(file.read_text("utf-8"))
            elif file.suffix == ".jsonl":
                [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        except ValueError:
            lines.append(f"half-written: {file.name}")
    return lines


def compare(surrounding: Surrounding, row: Row, lines: list[str]) -> list[str]:
    """Return where a row is not what its surrounding has to come to."""
    wrong = []
    if surrounding.refuses:
        row.reads = next((line for line in lines if re.search(surrounding.refuses, line)), "")
        wrong += [] if row.reads else [f"{surrounding.refuses!r} is not said: {lines[-1]}"]
    elif row.right is None or row.right < RIGHT:
        wrong.append(f"{row.right} questions are answered right")
    if (row.status == 0) == bool(surrounding.refuses):
        wrong.append(f"exit status {row.status}, {lines[-1]}")
    if row.seconds > surrounding.seconds:
        wrong.append(f"{row.seconds:.0f} s")
    if tracebacks := sum("Traceback" in line for line in lines):
        wrong.append(f"{tracebacks} tracebacks")
    return wrong + [f"left running: {line}" for line in row.left]


def cells(row: Row) -> list[str]:
    """Return the cells of a row of the table."""
    if row.status is None:
        return [row.what, "not tried", "", "", "", row.reads]
    right = "-" if row.right is None else f"{row.right} of {QUESTIONS}"
    left = "; ".join(row.left) or "nothing"
    return [row.what, str(row.status), f"{row.seconds:.0f}", right, left, row.reads]


if __name__ == "__main__":
    sys.exit(main())
