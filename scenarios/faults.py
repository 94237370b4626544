"""Run the published notebook with each fault and each interruption; tell what it cost and what it left.

Every fault gets an emulator and a papermill run of its own. What could be known beforehand has to cost
nothing and create nothing; whatever else goes wrong has to leave no endpoint, and the run after it, the
fault switched off, has to succeed and to pay for no training twice. A deviation ends the program with
status 1. The whole table is kept in docs/faults.md.
"""

import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from scenarios import notebook_runs as runs
from scenarios.by_hand import try_by_hand
from scenarios.cases import DONE, FIRST_CASES, OWN, Case
from scenarios.interruptions import WAYS, cut_off
from scenarios.notebook_runs import ROOT, Row
from scenarios.table import finish, parse, table

KEPT = ROOT / "docs" / "faults.md"
HEAD = ("what happens", "step that stops", "seconds", "node-seconds", "left", "what you read")
BY_HAND = "cell by cell: step 8 fails; steps 1 to 9 run again succeed"

LATE_CASES = [  # the slow ones first, so that the last one to end is short
    Case("upload-broken", 5, "no job was submitted: [^<]+; where the network failed, run this cell again"),
    Case("throttled=10", 0, "trying again.*Nothing left running"),
    Case(
        "", 5, "the emulator stopped while the job ran", kills=True, what="emulator killed, and started again"
    ),
    Case("reset", None),
    Case("slow=0.1", 0, DONE),
    Case("preempted", 0, f"preempted.*{DONE}", {"compute_tier": "low_priority"}),
    Case("token-seconds=20", 0, DONE),
    Case("stuck-preparing", 5, "did not complete.*canceled, within", {"job_limit_minutes": 0.05}),
    Case("scoring-status=401", 8, r"refused: \(Unauthorized\)"),
    Case("scoring-status=408", 8, "408"),
    Case("scoring-status=424", 8, "refused: An unexpected error occurred in scoring script"),
    Case("scoring-status=429", 8, r"refused: \(429\)"),
    Case("scoring-status=500", 8, r"refused: \(InternalServerError\)"),
    Case("deployment-unhealthy", 7, "the deployment failed"),
    Case("endpoint-taken", 7, "is taken in"),
    Case("register-refused", 6, "may not register models"),
    Case("convert-failed", 5, "ft_nlp_model_converter: the fault convert-failed"),
    Case("out-of-memory", 5, "chat_completion_finetune: out of memory"),
    Case("finetune-failed", 5, "chat_completion_finetune: the fault finetune-failed"),
    Case("preprocess-failed", 5, "chat_completion_datapreprocess: the fault preprocess-failed"),
    Case("validation-failed", 5, "ft_nlp_common_validation: the fault validation-failed"),
    Case("compute-failed", 3, "no capacity"),
    Case("delete-failed", 9, "it still runs and is billed"),
    Case("delete-failed=1000", 9, "it still runs and is billed.*az ml online-endpoint delete", leaves=1),
    Case("answer-shape=vllm", 0, DONE),
    Case("answer-shape=openai", 0, DONE),
    Case("answer-shape=mlflow", 0, DONE),
]
WAITING = {"upload-broken", "throttled=10"}  # the SDK's pauses between tries make up most of them
CASES = {case.name: case for case in [*FIRST_CASES, *LATE_CASES]}


def main() -> int:
    names = [*CASES, BY_HAND, *WAYS]
    options = parse(__doc__, names, at_once=2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored, and inherited
    began, busy = time.monotonic(), os.getloadavg()[0]
    rows = try_all(options.only or names, options.at_once, options.keep)
    took = f"{len(rows)} rows in {time.monotonic() - began:.0f} s, {options.at_once} runs side by side"
    took += f" on {os.cpu_count()} cores, of which other programs kept {busy:.1f} busy when it began"
    shown = table(HEAD, map(cells, rows))
    return finish(shown, took, rows, None if options.only else KEPT)


def try_all(names: list[str], at_once: int, kept: Path | None = None) -> list[Row]:
    """Return the rows, in order, of so many runs side by side, and of those that wait beside them."""
    with folder_for(kept) as folder, ThreadPoolExecutor(at_once) as pool, ThreadPoolExecutor(1) as aside:
        found = [
            (aside if name in WAITING else pool).submit(follow, name, folder / re.sub(r"\W+", "-", name))
            for name in names
        ]
        return [row for rows in found for row in rows.result()]


@contextmanager
def folder_for(kept: Path | None) -> Iterator[Path]:
    """Give a folder: the one to keep, or one that goes."""
    if kept:
        yield kept.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="faults-") as name:
            yield Path(name)


def follow(name: str, folder: Path) -> list[Row]:
    """Return the rows of one name, and say how each went."""
    runs.prepare(folder)
    if name == BY_HAND:
        rows = try_by_hand(name, folder)
    else:
        rows = cut_off(name, folder) if name in WAYS else [try_fault(CASES[name], folder)]
    for row in rows:
        verdict = "; ".join(row.deviations) or "as expected"
        print(f"{row.what}: {row.step}, {row.seconds:.0f} s, {verdict}", file=sys.stderr)
    return rows


def try_fault(case: Case, folder: Path) -> Row:
    """Return the row of a run with a fault, after a second one without it where the first stopped."""
    faults = [case.fault] if case.fault else []
    with runs.served(folder, *faults) as emulator:
        if case.rows:
            (folder / OWN).write_text(case.rows)
        if case.kills:
            threading.Thread(target=kill_in_job, args=(emulator, folder)).start()
        status = runs.execute(folder, "fault.ipynb", case.parameters, emulator.variables)
        deviations = [] if case.leaves else runs.survivors(folder)
        row = runs.read(case.name, folder, "fault.ipynb", status)
        row.deviations += deviations + compare(case, row, status, folder)
        emulator.process.send_signal(signal.SIGUSR1)  # switches the fault off
        if case.leaves:
            row.deviations += runs.survivors(folder) + [f"stays: {name}" for name in runs.left(folder)]
        elif case.spends and row.step != "-":
            again = runs.again("again", folder, emulator.variables, resume=row.step[0] > "5")
            row.deviations += again.deviations + [f"left without the fault: {name}" for name in again.left]
    if found := re.search(r".*Still running and billed.*|.*Warning: the component.*", row.said):
        row.reads = found[0]
    return row


def kill_in_job(emulator: runs.Emulator, folder: Path) -> None:
    """Kill the emulator a second after a job began, and start it again."""
    while not runs.jobs(folder):
        time.sleep(0.1)
    time.sleep(1)
    emulator.kill_and_start_again()


def compare(case: Case, row: Row, status: int, folder: Path) -> list[str]:
    """Return where a row is not what its fault has to come to."""
    wrong = []
    expected = row.step if case.step is None else str(case.step or "-")
    if row.step.partition(".")[0] != expected.partition(".")[0]:
        wrong.append(f"stopped in {row.step}, not in {expected}")
    if (status == 0) != (row.step == "-"):
        wrong.append(f"exit status {status}")
    if not re.search(case.says, f"{row.said}\n{row.reads}", re.DOTALL):
        wrong.append(f"{case.says!r} is not in what the user reads: {row.reads}")
    if len(row.left) != case.leaves:
        wrong.append(f"left: {', '.join(row.left) or 'nothing'}")
    created = [name for name in runs.created(folder) if name not in case.creates]
    if not case.spends and (row.node_seconds or created):
        wrong.append(f"spent {row.node_seconds:.0f} node-seconds, created {created}")
    return wrong


def cells(row: Row) -> list[str]:
    """Return the cells of a row of the table."""
    reads = row.reads[:240] + ("…" if len(row.reads) > 240 else "")
    counts = [f"{row.seconds:.0f}", f"{row.node_seconds:.0f}"]
    return [row.what, row.step, *counts, ", ".join(row.left) or "nothing", reads]


if __name__ == "__main__":
    sys.exit(main())
