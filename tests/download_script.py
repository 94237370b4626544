"""download-dataset.py by its command line, in a process whose imports are done."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

SCRIPT = Path(__file__).parents[1] / "download-dataset.py"
GOOD = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
# Runs the script's main() for each line of arguments, so that not every test pays for the imports.
WARM = """
import contextlib, io, json, os, runpy, sys, traceback
sys.path.insert(0, os.path.dirname(sys.argv[1]))
main = runpy.run_path(sys.argv[1])["main"]
for line in sys.stdin:
    folder, *sys.argv[1:] = json.loads(line)
    os.chdir(folder)
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
            if status and not isinstance(end.code, int):
                print(end.code, file=sys.stderr)
        except BaseException:
            status = traceback.format_exc()
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""


class Ended(NamedTuple):
    """How a run of the script ended."""

    status: int
    out: str
    err: str


def sentence(ended: Ended) -> str:
    """What a failed run said, which is one line."""
    assert (ended.status, len(ended.err.splitlines())) == (1, 1), (ended.status, ended.err)
    return ended.err


@contextlib.contextmanager
def warm_script(environment: dict[str, str]) -> Iterator[Callable[..., Ended]]:
    """A function that runs the script in a folder, with arguments."""
    command, pipe = [sys.executable, "-c", WARM, str(SCRIPT)], subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as process:

        def run(folder: Path, *arguments) -> Ended:
            print(json.dumps([str(folder), *map(str, arguments)]), file=process.stdin, flush=True)
            return Ended(*json.loads(process.stdout.readline()))

        yield run
