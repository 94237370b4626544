"""Run other people's notebooks on the emulator, and tell how far each comes and what stops it.

python -m local_azureml run --data-dir STATE -- python -m scenarios.samples [--page FILE] FOLDER [PART ...]

FOLDER holds notebooks and the files that they read, laid out as in their repository, and in
FOLDER/web/HOST/PATH what they read from https://HOST/PATH or http://HOST/PATH, or by its other name with
wasbs://. A web server of this program's own answers for the first two. The notebooks run one after the other,
in a copy, in kernels of the Python that runs this program; PART picks those whose path holds it.
docs/samples.md is the page of the samples of Azure/azureml-examples, and says by what the copy differs; its
table, and the paragraph above it that counts, are renewed.
"""

import argparse
import io
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache, partial, reduce
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from urllib.parse import quote

import nbformat
from azure.ai.ml import MLClient
from azure.ai.ml.entities import AmlCompute
from azure.ai.ml.exceptions import JobException
from azure.identity import DefaultAzureCredential
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from local_azureml import identifiers
from local_azureml.control_plane import registry
from local_azureml.data_plane.mlflow_compatibility import ISSUES, LEARN, TABLE

CHANGES = ("ids", "pip", "source", "web", "size", "cluster")  # as docs/samples.md explains them
IDS = {
    "SUBSCRIPTION": identifiers.SUBSCRIPTION,
    "RESOURCE": identifiers.GROUP,
    "WORKSPACE": identifiers.WORKSPACE,
    "REGISTRY": registry.NAME,
}
PLACEHOLDER = re.compile(
    rf"<(?![\w -]*(connection|identity|UAI))[\w -]*(?P<what>{'|'.join(IDS)})[\w -]*>", re.IGNORECASE
)
INSTALLS = re.compile(r"^\s*[%!]\s*(pip|conda|az|apt|apt-get)\b.*\n?", re.MULTILINE)
SIZE = re.compile(r"\bstandard_[a-z]+\d\w*", re.IGNORECASE)
SIZES = {size["name"].lower() for size in json.loads((identifiers.SEEDS / "sizes.json").read_text("utf-8"))}
PATH = re.compile(r"(load_component\(\s*)path=")
CLUSTERS = {"cpu-cluster": "Standard_DS3_v2", "gpu-cluster": "Standard_NC4as_T4_v3"}
TEXTS = (".ipynb", ".py", ".yml", ".yaml", ".json", ".sh", ".R")
NOTHING = "nothing: it reached its end"
TOO = "on Azure too"
REFUSED = re.compile(r"API request to endpoint (\S+) failed with error code (\d+)")  # MLflow's words
UNBUILT = re.compile(r"\(NotImplemented\) .+")
CONTAINER = re.compile(r"the container of (\S+)/(\S+) ended")
PATIENCE = 900  # seconds for one cell
SDK = "azure-ai-ml 1.35.1"
ITSELF = (  # what is said where a sample or a library of today stops it on Azure too, and the source of that
    (r"NameError: name '\w+' is not defined", "no cell that runs defines it"),
    (r"'OnlineEndpointOperations' object has no attribute 'list_keys'", f"{SDK} calls it get_keys"),
    (r"'EndpointAuthKeys' object has no attribute 'access_token'", "the notebook made it with keys"),
    (r"'LROPoller' object has no attribute 'name'", "the notebook does not wait for the result"),
    (r"'NodeOutput' object is not subscriptable", f"an output of {SDK} is an object"),
    (r"'NoneType' object has no attribute 'properties'", f"`jobs.download` of {SDK} returns nothing"),
    (r"Input path can't be empty", f"{SDK} has no Input(folder=)"),
    (r"No such file or directory: \.\./tests/test_configs", "the repository has no such file"),
    (r"unexpected keyword argument 'normalize'", "scikit-learn lacks it from 1.2 on, and 1.5 is asked for"),
    (r"No module named 'skops'", "MLflow saves with it from 3.14 on (github.com/mlflow/mlflow/pull/23987)"),
    (r"artifacts from path 'model'", f"autologging makes a logged model, see {ISSUES}/44896"),
    (r"cannot import name 'ResourceManagementClient'", "the changelog of azure-mgmt-resource, 25.0.0"),
    (r"/blue/model/model'", f"{LEARN}/concept-online-deployment-model-specification: by the folder's name"),
)
CAUSE = re.compile(r"^(?!UserError)(\S+(?:Error|Exception): .+|.+: command not found)$", re.MULTILINE)
GUID = re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")  # an author's subscription, say
DATA = re.compile(r"/[\w./-]+/(?=(deployments|environments|jobs|blobs|web)/)")  # the emulator's folder
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Row:
    """How far one notebook came."""

    notebook: str
    changes: list[str]
    cells: int  # of code, that ended
    of: int
    seconds: float
    jobs: dict[str, int]  # that it submitted, by the status that each ended with
    reason: str  # why it stopped, or why a job of its failed; empty if neither


def main() -> int:
    """Return the exit status: 0, whatever the notebooks came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the samples lie")
    parser.add_argument("part", nargs="*", help="run the notebooks whose path holds this")
    parser.add_argument("--page", type=Path, help="write the lines of the table there, beside its others")
    parser.add_argument("--keep", type=Path, help="keep the executed copies there")
    options = parser.parse_args()
    found = sorted(path.relative_to(options.folder) for path in options.folder.rglob("*.ipynb"))
    chosen = [path for path in found if not options.part or any(part in str(path) for part in options.part)]
    if not chosen:
        parser.error(f"{options.folder} holds no notebook {' or '.join(options.part)}")
    if "AZUREML_ARM_WORKSPACE_NAME" not in os.environ:
        parser.error("start it by python -m local_azureml run -- python -m scenarios.samples FOLDER")
    workspace = connect().workspaces.get(identifiers.WORKSPACE)
    os.environ["MLFLOW_TRACKING_URI"] = workspace.mlflow_tracking_uri  # as on a compute instance
    with (
        tempfile.TemporaryDirectory(prefix="samples-") as temporary,
        serving(options.folder / "web") as origin,
    ):
        copy = (options.keep or Path(temporary) / "copy").resolve()
        changed = prepare(options.folder.resolve(), copy, origin)
        rows = [follow(copy, path, changed) for path in chosen]
    lines = {row.notebook: line(row) for row in rows}
    print(table(lines))
    if options.page:
        before = options.page.read_text("utf-8") if options.page.exists() else ""
        options.page.write_text(page(before, kept(before) | lines), "utf-8")
    return 0


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder's files on a free port, and give the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    """A server of files that says nothing of what it serves."""

    def log_message(self, *args: object) -> None:
        pass


def prepare(folder: Path, copy: Path, origin: str) -> dict[Path, set[str]]:
    """Copy the samples, change them, and return what was changed in each file."""
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    addresses = {}
    for file in (copy / "web").rglob("*"):
        host, *path = quote(str(file.relative_to(copy / "web"))).split("/")
        if len(path) > 1:
            addresses[f"wasbs://{path[0]}@{host}/{'/'.join(path[1:])}"] = str(file)
        if file.is_file():
            names = [f"{scheme}://{host}/{'/'.join(path)}" for scheme in ("https", "http")]
            addresses |= dict.fromkeys(names, f"{origin}/{host}/{'/'.join(path)}")
    names = dict(zip(("subscription_id", "resource_group", "workspace_name"), IDS.values(), strict=False))
    (copy / "config.json").write_text(json.dumps(names))
    texts = [file for file in copy.rglob("*") if file.suffix in TEXTS and copy / "web" not in file.parents]
    return {file.relative_to(copy): change(file, addresses) for file in texts}


def change(file: Path, addresses: dict[str, str]) -> set[str]:
    """Change a file in its place and return the names of the changes."""
    notebook = nbformat.read(file, as_version=4) if file.suffix == ".ipynb" else None
    cells = notebook.cells if notebook else [SimpleNamespace(source=file.read_text("utf-8"))]
    longest_first = sorted(addresses.items(), key=lambda pair: -len(pair[0]))
    edits = {
        "ids": lambda text: PLACEHOLDER.sub(lambda found: IDS[found["what"].upper()], text),
        "pip": lambda text: INSTALLS.sub("", text) if notebook else text,
        "source": lambda text: PATH.sub(r"\1source=", text),
        "web": lambda text: reduce(lambda text, pair: text.replace(*pair), longest_first, text),
        "size": lambda text: SIZE.sub(known_size, text),
    }
    changes = set()
    for cell in cells:
        for name, edit in edits.items():
            before, cell.source = cell.source, edit(cell.source)
            changes |= {name} if cell.source != before else set()
    if notebook:
        nbformat.write(notebook, file)
    elif changes:
        file.write_text(cells[0].source, "utf-8")
    return changes


def known_size(found: re.Match) -> str:
    """Return the size that a text names, or one that the emulator has."""
    return found[0] if found[0].lower() in SIZES else "Standard_DS3_v2"


def follow(copy: Path, path: Path, changed: dict[Path, set[str]]) -> Row:
    """Run one notebook to its end or to the cell that stops it."""
    notebook = nbformat.read(copy / path, as_version=4)
    nearby = changed[path].union(
        *(names for file, names in changed.items() if path.parent in file.parents and file.suffix != ".ipynb")
    )
    sources = "\n".join(cell.source for cell in notebook.cells)
    if expected := [name for name in CLUSTERS if re.search(rf"(?<![\w-]){name}(?![\w-])", sources)]:
        make_clusters(expected)
        nearby.add("cluster")
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    client = NotebookClient(
        notebook,
        timeout=PATIENCE,
        kernel_name="python3",
        resources={"metadata": {"path": str(copy / path.parent)}},
        on_cell_executed=lambda **_: wait(submitted() - before),
    )
    begun, reason, before = time.monotonic(), "", submitted()
    try:
        client.execute()
    except CellExecutionError as error:
        said = ESCAPES.sub("", error.evalue).partition("\nCode:")[0]
        reason = f"{error.ename}: {said}"
        if "(NotImplemented)" not in reason and (behind := UNBUILT.search(ESCAPES.sub("", error.traceback))):
            reason += f": {behind[0]}"
        if ended := CONTAINER.search(reason):
            said = CAUSE.findall(connect().online_deployments.get_logs(ended[2], ended[1], lines=1000))
            reason += f": {said[-1]}" if said else ""
    except CellTimeoutError:
        reason = f"a cell took more than {PATIENCE} s"
    except DeadKernelError:
        reason = "the kernel died"
    nbformat.write(notebook, copy / path)
    ended = sum(map(succeeded, code))
    jobs, failures = outcomes(submitted() - before)
    changes = [name for name in CHANGES if name in nearby]
    failed = "; ".join(f"a job of its failed: {failure}" for failure in failures)
    reason = "; ".join(filter(None, ["" if failed and reason.startswith("JobException") else reason, failed]))
    reason = reason.replace(str(copy), "FOLDER")
    row = Row(str(path), changes, ended, len(code), time.monotonic() - begun, jobs, reason)
    print(line(row), file=sys.stderr)
    return row


def submitted() -> set[str]:
    """Return the names of the workspace's jobs."""
    return {job.name for job in connect().jobs.list()}


def wait(names: set[str]) -> None:
    """Wait for jobs to end, whatever they come to, as the text around a cell asks of who reads it."""
    for name in names:
        with redirect_stdout(io.StringIO()), suppress(JobException):
            connect().jobs.stream(name)


def outcomes(names: set[str]) -> tuple[dict[str, int], list[str]]:
    """Wait for jobs, and return how many ended with each status, and why the failed ones did."""
    client = connect()
    causes = [cause(client, name) for name in sorted(names)]
    return dict(Counter(client.jobs.get(name).status for name in names)), [why for why in causes if why]


def cause(client: MLClient, name: str) -> str:
    """Wait for a job, and return why it or a part of it failed: the last error in its log, if it has one."""
    with redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        try:
            client.jobs.stream(name)
        except JobException as error:
            parts = [part.name for part in client.jobs.list(parent_job_name=name) if part.status == "Failed"]
            client.jobs.download(name, download_path=folder)
            logs = [log.read_text("utf-8") for log in Path(folder).rglob("std_log.txt")]
            said = CAUSE.findall("\n".join(logs)) or [cause(client, part) for part in parts]
            return (said or re.findall(r'"message": "(.+?)"', str(error)) or [str(error)])[-1]
    return ""


def succeeded(cell: nbformat.NotebookNode) -> bool:
    failed = any(output.output_type == "error" for output in cell.outputs)
    return "shell.execute_reply" in cell.metadata.get("execution", {}) and not failed


@cache
def connect() -> MLClient:
    return MLClient(
        DefaultAzureCredential(), identifiers.SUBSCRIPTION, identifiers.GROUP, identifiers.WORKSPACE
    )


def make_clusters(names: list[str]) -> None:
    """Make the clusters of these names."""
    client = connect()
    for name in names:
        client.compute.begin_create_or_update(
            AmlCompute(name=name, size=CLUSTERS[name], max_instances=4)
        ).result()


def table(lines: dict[str, str]) -> str:
    """Return the table in Markdown, of lines by their notebooks."""
    head = ["| notebook | changes | cells | jobs | seconds | what stops it |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *(lines[notebook] for notebook in sorted(lines))])


def kept(page: str) -> dict[str, str]:
    """Return the lines that a page has, by their notebooks."""
    lines = [line for line in page.splitlines() if ".ipynb | " in line]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines}


def line(row: Row) -> str:
    reason = DATA.sub("DATA/", row.reason.replace(identifiers.WORKSPACE_ID, "WORKSPACE")).replace("|", "\\|")
    reason = GUID.sub("ID", " ".join(reason.split()))
    reason = reason[:300] + ("…" if len(reason) > 300 else "") + there_too(reason) or NOTHING
    jobs = ", ".join(f"{count} {status.lower()}" for status, count in sorted(row.jobs.items()))
    cells = [row.notebook, ", ".join(row.changes), f"{row.cells} of {row.of}", jobs]
    return f"| {' | '.join([*cells, f'{row.seconds:.0f}', reason])} |"


def there_too(reason: str) -> str:
    """Return why a sample stops on Azure as well, where that is known, and where it is said."""
    path, status = found.groups() if (found := REFUSED.search(reason)) else ("", "")
    verbs = ("GET", "POST", "PATCH", "DELETE")
    lacks = [line for line in TABLE if any(line.match(verb, path, {}) for verb in verbs)]
    said = [line.lack for line in lacks if str(line.status) == status]
    said += [source for words, source in ITSELF if re.search(words, reason)]
    return f"; {TOO}: {said[0]}" if said else ""


def page(before: str, lines: dict[str, str]) -> str:
    """Return a page with these lines in its table, and above it the paragraph that counts them."""
    done = sum(NOTHING in line for line in lines.values())
    refused = sum("(NotImplemented)" in line for line in lines.values())
    as_there = sum(TOO in line for line in lines.values())
    counts = (
        f"{done} of {len(lines)} reach their end with every job completed, {as_there} stop where they would"
        f" stop\n{TOO}, and {refused} come to what the emulator refuses by name, with status 501."
    )
    introduction = before.partition("\n\n| ")[0].rpartition("\n\n")[0]
    return f"{introduction}\n\n{counts}\n\n{table(lines)}\n"


if __name__ == "__main__":
    sys.exit(main())
