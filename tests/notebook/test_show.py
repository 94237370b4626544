"""show.py: tables, what the curves of the loss come to, answers."""

import ast
import json
import math
import re
from types import SimpleNamespace

import pandas
import pytest

import show


def points(values: list[float]) -> list:
    """Return a curve as MLflow gives it."""
    return [SimpleNamespace(step=10 * number, value=value) for number, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ('{"output": "Hi"}', "Hi"),
        ('[{"0": "Hi"}]', "Hi"),
        ('{"output": "Hi", "finish_reason": "stop"}', "Hi"),
    ],
    ids=["vllm", "mlflow", "openai"],
)
def test_each_form_of_answers_is_read(raw, text):
    assert show.answer(lambda *_: raw, "demo", [{"role": "user", "content": "Hello?"}]) == text


def test_the_flat_form_is_asked_in_where_the_nested_one_is_refused_in_plain_text():
    from azure.ai.ml.exceptions import MlException

    def ask(_, conversation: list) -> str:
        if isinstance(conversation[0], list):
            raise MlException("An unexpected error occurred", "")  # as the SDK does where the body is no JSON
        return json.dumps({"output": conversation[0]["content"]})

    assert show.answer(ask, "demo", [{"role": "user", "content": "Hello?"}]) == "Hello?"


@pytest.mark.parametrize(
    ("training", "evaluation", "warns"),
    [
        ([4.0, 1.0], [1.2], False),
        ([4.0, 8.3], [8.3], True),
        ([4.0], [math.nan], True),
        ([4.0, 3.0], [], False),
        ([], [2.0], False),
        ([], [], False),
    ],
)
def test_a_loss_that_ends_well_above_its_beginning_is_warned_of(training, evaluation, warns, capsys):
    show.report_loss(points(training), points(evaluation))
    assert ("nothing was learned" in capsys.readouterr().out) == warns


def test_a_table_has_texts_on_the_left_with_their_line_breaks_and_no_markup_of_theirs(capsys):
    show.table(pandas.DataFrame({"said": ["<b>one</b>\ntwo"]}))
    page = capsys.readouterr().out
    assert (
        "text-align: left" in page
        and "white-space: pre-wrap" in page
        and "&lt;b&gt;one&lt;/b&gt;\\ntwo" in page
    )


def test_what_others_call_things_neither_marks_up_a_table_nor_tells_the_terminal_anything(capsys):
    """In heads as in cells; a price is no formula."""
    evil = "<i>x</i>\x1b]0;title\x07\x1b[2J\x9b3J $5 to $10"
    frame = pandas.DataFrame([[evil]], columns=[evil], index=pandas.Index([evil], name=evil))
    show.table(frame)
    page = ast.literal_eval(capsys.readouterr().out)
    assert "<i>" not in page["text/html"] and "<span>$</span>5 to <span>$</span>10" in page["text/html"]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", page["text/html"] + page["text/plain"])
    assert page["text/plain"].count("<i>x</i>3J $5 to $10") == 4


def test_where_the_evaluation_loss_was_lowest_is_said_if_it_rose_again(capsys):
    show.report_loss(points([4.0, 1.0, 0.5]), points([2.0, 1.25, 1.5]))
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "It was lowest at step 20, 1.250: the weights of that moment are kept."
