"""Says in one sentence why a cell of finetune_phi3_ultrachat.ipynb failed, and keeps noise out of its output.

An error is explained where it arrives, so that no cell has to expect one: IPython hands over each that nobody
caught, and FAILURES says what it means that this call failed.
"""

import ast
import itertools
import linecache
import re
import sys
import traceback
from contextlib import suppress

from azure.ai.ml import MLClient
from azure.ai.ml.exceptions import MlException
from azure.core.exceptions import AzureError
from IPython import get_ipython

from terminal import plain

OURS = ("__main__", "safeguards", "settings", "costs", "show")  # the cells, and what lies beside the notebook
FAILURES = {  # a call -> what failed with it, and what to do
    "workspaces.get": (
        "the workspace did not open",
        "check the first three parameters, or add a config.json",
    ),
    "registry_name=": ("the registry did not open", "check registry_name"),
    "registry.models.get": ("no such model", "pick one from https://ml.azure.com/models"),
    "workspace.jobs.get": ("no such job", "see Jobs in Studio"),
    "compute.list_": (
        "nothing was created. sizes and quota can't be read",
        "ask for the role Reader on the subscription",
    ),
    "compute.begin_create": ("no cluster was created", "nothing is billed; another size or region may do"),
    "compute.begin_delete": ("the cluster was not deleted", "at zero machines it costs nothing"),
    "what_runs(": ("what still runs can't be listed", "look at Jobs, Endpoints and Compute in Studio"),
    "check_before_paying(": ("nothing was created. the checks can't be made", "run this cell again"),
    "delete_when_kernel_ends(": ("nothing was created. endpoints can't be listed", "run this cell again"),
    "jobs.create": ("no job was submitted", "where the network failed, run this cell again"),
    "models.create": ("no model was registered", "the job keeps its files: run this cell again"),
    "online_endpoints.begin_create": ("the endpoint is not ready", "the model stays: run this cell again"),
    "online_deployments.begin_create": ("the deployment failed", "run this cell again, or stop paying: {}"),
    "online_endpoints.invoke": ("the endpoint refused", "its deployment's log in Studio says more"),
    "online_endpoints.begin_delete": ("it still runs and is billed", "run this cell again, or: {}"),
}


def switch_on() -> None:
    """Explain the errors of all cells to come, and keep the SDK's noise out of their outputs."""
    quiet_sdk()
    if shell := get_ipython():
        # before each cell: at its end, IPython takes back what a cell does to streams
        shell.events.register("pre_run_cell", quiet_sdk)
        shell.set_custom_exc((AzureError, MlException, NameError, RuntimeError, ValueError), show_error)


def quiet_sdk(cell=None) -> None:
    """Leave out what the SDK writes while it waits: lone dots, and colour codes alone, an empty box."""
    leave_out(r"\.", sys.stdout)
    leave_out(r"\s*(\x1b\[\d*m\s*)+", sys.stderr)


def leave_out(noise: str, stream) -> None:
    """Keep from a stream texts that are all noise, with the line end after one, and ids of subscriptions."""
    if hasattr(stream.write, "noise"):  # done already
        return
    write, silent = stream.write, False

    def filtered(text: str) -> int:
        nonlocal silent
        ends, silent = silent and text == "\n", re.fullmatch(noise, text) is not None
        return len(text) if ends or silent else write(masked(text))

    filtered.noise = noise
    stream.write = filtered


def show_error(shell, kind: type, error: Exception, trace, tb_offset: int | None = None) -> None:
    """Show an error as IPython does; one that is understood without the lines that led to it."""
    if plain := explained(error, trace):
        kind, error, trace = type(plain), plain, None
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)


def explained(error: Exception, trace) -> Exception | None:
    """Return an error that says what failed, why, and what to do; None where nothing is known of it."""
    frames = list(traceback.walk_tb(trace))
    ours = [(frame, line) for frame, line in frames if frame.f_globals.get("__name__") in OURS]
    if isinstance(error, (AzureError, MlException)):
        for frame, line in ours[::-1]:
            failed = statement(frame, line)
            if calls := [call for call in FAILURES if call in failed]:
                below = [inner.f_code.co_name for inner, _ in frames[frames.index((frame, line)) :]]
                named = itertools.product(below, calls)  # of two calls in a line, the one that was under way
                call = next((call for name, call in named if name.startswith(method(call))), calls[0])
                return RuntimeError(
                    f"{FAILURES[call][0]}: {error_message(error)}; {advice(call, failed, frame.f_globals)}"
                )
    elif frames[-1:] == ours[-1:]:
        in_a_cell = frames[-1][0].f_globals["__name__"] == "__main__"
        if isinstance(error, NameError) and in_a_cell:
            return NameError(f"{error}: run the steps above first")
        if not in_a_cell:
            return type(error)(masked(str(error)))
    return None


def method(call: str) -> str:
    """Return how the name of the SDK's method begins that a call of FAILURES means."""
    return call.rpartition(".")[2].rstrip("(=")


def statement(frame, line: int) -> str:
    """Return the first line of the innermost statement that a line of a frame belongs to, as if unwrapped."""
    source = "".join(linecache.getlines(frame.f_code.co_filename, frame.f_globals))
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    around = [node for node in nodes if node.lineno <= line <= node.end_lineno]
    return ast.unparse(max(around, key=lambda node: node.lineno)).splitlines()[0]


def advice(call: str, failed: str, notebook: dict) -> str:
    """Return what to do after a call failed; print the container's log where a deployment did."""
    words = FAILURES[call][1]
    if "{}" not in words:
        return words
    workspace, endpoint = notebook["workspace"], notebook["endpoint"].name
    if call.startswith("online_deployments"):
        deployment = notebook[re.search(r"update\((\w+)\)", failed)[1]].name
        with suppress(AzureError):  # refused before there was anything to log
            print(workspace.online_deployments.get_logs(deployment, endpoint, lines=50))
    return words.format(delete_command(workspace, endpoint))


def masked(text: str) -> str:
    """Return a text without the ids of subscriptions."""
    return re.sub(r"(?i)(subscriptions?\W{1,3})[0-9a-f]{8}-[0-9a-f-]{27}", r"\1...", plain(text))


def error_message(error: Exception) -> str:
    """Return the first line of what Azure says, without colours, Python's classes and subscription ids."""
    said = re.sub(r"\x1b\[\d+m", "", getattr(error, "message", None) or str(error))
    if "Resolutions:" in said:  # of an upload: between two headings, over many lines
        said = " ".join(said.partition("Details:")[2].partition("Resol")[0].split()).rpartition("Met ")[2]
    said = re.sub(r"<class '[\w.]+'>:? ?", "", said).strip()
    return masked(said.splitlines()[0]) if said else type(error).__name__


def delete_command(workspace: MLClient, endpoint: str) -> str:
    """Return the command that deletes an endpoint."""
    place = f"-g {workspace.resource_group_name} -w {workspace.workspace_name}"
    return f"az ml online-endpoint delete --yes {place} --name {endpoint}"
