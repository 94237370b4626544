"""How finetune_phi3_ultrachat.ipynb shows what there is to see: tables, the curves of the loss, an answer."""

import json
import math
from collections.abc import Callable
from html import escape

import matplotlib.pyplot as plt
import pandas as pd
from azure.ai.ml.exceptions import MlException
from azure.core.exceptions import AzureError
from IPython.display import display

from explain import error_message
from terminal import plain

OTHER_FORM = (None, 400, 422, 424)  # what a server answers to a request in a form that it does not take


def table(frame: pd.DataFrame) -> None:
    """Show a table with its texts on the left and their line breaks; nothing where it has no rows."""
    if frame.empty:
        return
    style = "text-align: left; white-space: pre-wrap; vertical-align: top; overflow-wrap: anywhere"
    heads = [str(name) for name in frame.index.names if name]
    frame = frame.rename_axis(index=[None] * frame.index.nlevels, columns=", ".join(heads) or None)
    shown = frame.rename(index=_plain, columns=_plain).map(_plain)
    shown = shown.rename_axis(columns=escape(plain(", ".join(heads))) or None)
    styler = shown.style.format(escape="html").set_uuid("table")
    styler = styler.format_index(escape="html", axis="index").format_index(escape="html", axis="columns")
    whole = {"selector": "th.col_heading", "props": "overflow-wrap: normal"}  # in a narrow window
    styler = styler.set_table_styles([{"selector": "th, td", "props": style}, whole])
    html = styler.set_table_attributes('class="dataframe"').to_html().replace("&nbsp;", "")
    html = html.replace("$", "<span>$</span>")  # from 5 to 10 $ is no formula
    with pd.option_context("display.max_colwidth", None, "display.width", 250):
        display({"text/html": html, "text/plain": plain(str(frame))}, raw=True)


def _plain(value: object) -> str:
    return plain(str(value))


def losses(training: list, evaluation: list) -> None:
    """Plot the two curves of the loss, and say what their ends mean; each is a list of MLflow's metrics."""
    figure, axis = plt.subplots(figsize=(8, 4), facecolor="white", layout="constrained")
    for points in (training, evaluation):
        axis.plot([point.step for point in points], [point.value for point in points], "o-")
    axis.set(title="Loss during training", xlabel="optimiser steps", ylabel="loss per token")
    axis.legend(["training", "evaluation"])
    plt.close(figure)
    alt = {"alt": "Loss of training and evaluation over the optimiser's steps"}  # for those who can't see it
    display(figure, metadata={"image/png": alt})
    report_loss(training, evaluation)


def report_loss(training: list, evaluation: list) -> None:
    """Say what the loss came to; warn where its end is no number, or well above its beginning."""
    which, points = ("evaluation", evaluation) if evaluation else ("training", training)
    if not points:
        return
    first, last = (training or points)[0].value, points[-1].value
    best = min(points, key=lambda point: point.value)
    print(f"The {which} loss ended at {last:.3f}: perplexity {math.exp(min(last, 700)):.2f}.")
    if best.value < last:
        print(f"It was lowest at step {best.step}, {best.value:.3f}: the weights of that moment are kept.")
    if not last < 1.1 * first:
        print(f"Warning: it began at {first:.3f}, so nothing was learned: lower learning_rate.")


def inputs_on_page(tracking, job, fingerprint: str, inputs: dict) -> None:
    """Put a job's inputs on its page in MLflow; say so where it had others, or none are taken."""
    from mlflow.entities import Param  # takes seconds to import, which the watcher can save
    from mlflow.exceptions import MlflowException

    if job.tags.get("fingerprint") != fingerprint:
        return print(f"Job {job.name} was submitted with other settings or data than those above.")
    try:
        tracking.log_batch(job.name, params=[Param(name, str(value)) for name, value in inputs.items()])
    except MlflowException as error:
        print(f"The inputs are not on the job's page in MLflow: {error_message(error)}")


def answer(ask: Callable, deployment: str, messages: list[dict]) -> str:
    """Return the text of a deployment's answer, whichever of Azure's servers is behind it.

    Some servers take a list of conversations, others one conversation: asked is in the first form, then
    in the second. They answer [{"0": text}] or {"output": text}.
    """
    for conversation in ([messages], messages):
        try:
            reply = json.loads(ask(deployment, conversation))
            reply = reply[0] if isinstance(reply, list) else reply
            return reply.get("output", reply.get("0"))
        except (AzureError, MlException) as error:  # the latter: a plain text, its status lost
            if conversation is messages or getattr(error, "status_code", None) not in OTHER_FORM:
                raise
        except TypeError:  # the SDK trips over status 408
            raise RuntimeError("the endpoint took over 90 s (408): lower max_new_tokens") from None
