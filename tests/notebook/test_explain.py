"""explain.py: errors in one sentence, and what is left out of a cell's output."""

import contextlib
import io

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

import explain

BEGIN = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import explain; explain.switch_on()"
REFUSED = """
from azure.core.exceptions import HttpResponseError


class workspace:
    class models:
        def create_or_update(model):
            raise HttpResponseError("(Forbidden) ask for a role\\nCode: Forbidden")


registered = None or workspace.models.create_or_update(
    "model",
)
"""


WAIT = "print('.', end='', flush=True); print('\\x1b[39m\\n', file=sys.stderr); print('done')"


@pytest.fixture(scope="module")
def outputs() -> list:
    """What a kernel shows of each cell."""
    cells = (BEGIN, WAIT, WAIT, REFUSED, "def divide():\n    return 1 / 0\n\ndivide()")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, kernel_name="python3", allow_errors=True).execute()
    return [cell.outputs for cell in notebook.cells]


def test_a_kernel_shows_what_failed_why_and_what_to_do_without_a_traceback(outputs):
    [error] = outputs[3]
    said = "no model was registered: (Forbidden) ask for a role; the job keeps its files: run this cell again"
    assert (error.output_type, error.ename, error.evalue) == ("error", "RuntimeError", said)
    assert "create_or_update" not in "".join(error.traceback)


def test_a_kernel_shows_any_other_error_as_ever(outputs):
    [error] = outputs[4]
    assert error.ename == "ZeroDivisionError" and "divide" in "".join(error.traceback)


def test_a_kernel_leaves_out_what_the_sdk_writes_while_it_waits(outputs):
    assert [output.text for cell in outputs[:3] for output in cell] == ["done\n", "done\n"]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "(Forbidden) ask for a role\nCode: Forbidden\nException Details:\t(Forbidden) no",
            "(Forbidden) ask for a role",
        ),
        (
            "\x1b[37m\nError:\n\x1b[39mDetails: \x1b[31m\n\n(x) Met <class 'azure.core.exceptions."
            "ServiceResponseError'>: ('Connection\naborted.')\n\n\x1b[39mResolutions: \n1) Try",
            "('Connection aborted.')",
        ),
        ("no /subscriptions/01234567-89ab-cdef-0123-456789abcdef/x", "no /subscriptions/.../x"),
    ],
)
def test_a_reason_is_one_line_without_colours_classes_and_subscription_ids(said, reason):
    assert explain.error_message(RuntimeError(said)) == reason


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        (["\x1b[39m\n", "\n", "a warning", "\n"], "a warning\n"),
        (["see /subscriptions/01234567-89ab-cdef-0123-456789abcdef/x\n"], "see /subscriptions/.../x\n"),
        (["\x1b[31mred\x1b[39m\n"], "\x1b[31mred\x1b[39m\n"),
        (["one", "\n", "\n", "two\n"], "one\n\ntwo\n"),
        (["\x1b]52;c;Y29weQ==\x07a\x1b[2J\x1bcnswer\u202e\n"], "answer\n"),
    ],
    ids=["an upload's empty box", "an id", "a coloured text", "empty lines", "a terminal's orders"],
)
def test_colour_codes_without_a_text_and_ids_are_left_out_of_stderr(written, kept):
    with contextlib.redirect_stderr(io.StringIO()) as stream:
        explain.switch_on()
        for text in written:
            stream.write(text)
    assert stream.getvalue() == kept


def test_the_dots_of_waiting_are_left_out_of_stdout():
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        explain.switch_on()
        print(".", end="", flush=True)
        print("... done.")
    assert stream.getvalue() == "... done.\n"
