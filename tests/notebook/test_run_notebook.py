"""The log of `make run`: tools/run_notebook.py on small notebooks."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

PROGRAM = [sys.executable, ROOT / "tools" / "run_notebook.py"]
TABLE = """
import pandas as pd
from IPython.display import display
pd.set_option("display.max_colwidth", None)
print("...", end="")
display(pd.DataFrame({"prompt": ["why? " * 40], "a long name": ["Standard_NC24ads_A100_v4" * 3]}))
print("\\x1b[39m\\n\\n========\\n..said", word, end="")
"""


def write(folder: Path, *codes: str) -> Path:
    """Return a notebook with a step for each code cell."""
    parameters = nbformat.v4.new_code_cell("word = 1", metadata={"tags": ["parameters"]})
    steps = [
        [nbformat.v4.new_markdown_cell(f"## {number}. Step\n\nWhy."), nbformat.v4.new_code_cell(code)]
        for number, code in enumerate(codes, 1)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [parameters, *(cell for step in steps for cell in step)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "given.ipynb")
    return folder / "given.ipynb"


def execute(notebook: Path, *options: str) -> subprocess.CompletedProcess:
    command = [*PROGRAM, notebook, notebook.with_name("executed.ipynb"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=notebook.parent)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> subprocess.CompletedProcess:
    """A run whose second step fails."""
    notebook = write(tmp_path_factory.mktemp("stopped"), TABLE, "raise RuntimeError('no quota')", "print(3)")
    return execute(notebook, "-p", "word", "2")


def test_the_last_line_is_why_it_stopped_and_the_status_is_1(stopped):
    last = stopped.stdout.splitlines()[-1]
    assert (last, stopped.returncode) == ("2. Step stopped: RuntimeError: no quota", 1)
    assert "Traceback" not in stopped.stdout + stopped.stderr


def test_it_shows_headings_and_what_the_steps_say_without_dots_rules_and_colours(stopped):
    lines = [line for line in stopped.stdout.splitlines() if "Step" in line or "said" in line]
    assert lines[:3] == ["1. Step", "said 2", "2. Step"]
    assert not {"...", "========", "\x1b[39m"} & set(stopped.stdout.splitlines())


def test_tables_are_wrapped_at_80_columns_and_nothing_of_them_is_cut(stopped):
    assert max(map(len, stopped.stdout.splitlines())) <= 80
    assert "".join(stopped.stdout.split()).count("why?") == 40
    assert "…" not in stopped.stdout


def test_a_kernel_that_dies_is_named_with_its_step_and_papermills_status(tmp_path):
    ended = execute(write(tmp_path, "import os; os._exit(1)"))
    assert (ended.returncode, "Traceback" in ended.stderr) == (138, False)
    assert ended.stderr.endswith("Error: the kernel died in 1. Step\n")


@pytest.mark.parametrize("options", [["-y", "{"], ["-f", "nowhere.yaml"]])
def test_a_wrong_command_line_ends_with_status_2_and_no_traceback(tmp_path, options):
    ended = execute(write(tmp_path, "print(1)"), *options)
    assert (ended.returncode, "Traceback" in ended.stderr) == (2, False)


def test_ctrl_c_interrupts_the_cell_and_ends_in_one_sentence(tmp_path):
    waits = "import time\ntry:\n    print('waits')\n    time.sleep(100)\nfinally:\n    print('tidied up')"
    notebook = write(tmp_path, waits, "print('never')")
    command = [*PROGRAM, notebook, tmp_path / "executed.ipynb"]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipe) as started:
        next(line for line in started.stdout if line == "waits\n")
        os.killpg(started.pid, signal.SIGINT)  # as a terminal does
        said = started.communicate(timeout=60)[0]
    said, sentence = said.splitlines(), "1. Step was interrupted: KeyboardInterrupt"
    assert (started.returncode, said) == (130, ["tidied up", "", sentence])
