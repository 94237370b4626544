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
from contextlib import contextmanager, redirect_stdout
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
from local_azureml.control_plane.jobs import FINAL
from scenarios.samples_page import Row, kept, line, page

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
UNBUILT = re.compile(r"\(NotImplemented\) .+")
CONTAINER = re.compile(r"the container of (\S+)/(\S+) (?:ended|did not)")
PATIENCE = 900  # seconds for one cell
CAUSE = re.compile(r"^(?!UserError)(\S+(?:Error|Exception): .+|.+: command not found)$", re.MULTILINE)
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


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
        os.environ["TMPDIR"] = temporary  # where the kernels' SDK leaves folders of its telemetry
        copy = (options.keep or Path(temporary) / "copy").resolve()
        changed = prepare(options.folder.resolve(), copy, origin)
        for path in chosen:
            said = line(follow(copy, path, changed))
            print(said, flush=True)
            if options.page:
                before = options.page.read_text("utf-8") if options.page.exists() else ""
                options.page.write_text(page(before, kept(before) | kept(said)), "utf-8")
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
        on_cell_executed=lambda **_: wait(before),
    )
    begun, reason, before = time.monotonic(), "", submitted()
    try:
        client.execute()
    except CellExecutionError as error:
        reason = why(error)
    except CellTimeoutError:
        reason = f"a cell took more than {PATIENCE} s"
    except DeadKernelError:
        reason = "the kernel died"
    nbformat.write(notebook, copy / path)
    ended = sum(map(succeeded, code))
    jobs, failures = outcomes(submitted() - before)
    failed = "; ".join(f"a job of its failed: {failure}" for failure in failures)
    reason = "; ".join(filter(None, ["" if failed and reason.startswith("JobException") else reason, failed]))
    reason = reason.replace(str(copy), "FOLDER")
    return Row(str(path), nearby, ended, len(code), time.monotonic() - begun, jobs, reason)


def why(error: CellExecutionError) -> str:
    """Return why a cell failed: its error, and a refusal behind it or the last error in a container's log."""
    reason = f"{error.ename}: {ESCAPES.sub('', error.evalue)}".partition("\nCode:")[0]
    behind = UNBUILT.findall(ESCAPES.sub("", error.traceback))
    if container := CONTAINER.search(reason):
        endpoint, deployment = container.groups()
        log = connect().online_deployments.get_logs(deployment, endpoint, lines=1000)
        behind = CAUSE.findall(log)
    return reason if not behind or behind[-1] in reason else f"{reason}: {behind[-1]}"


def submitted() -> set[str]:
    """Return the names of the workspace's jobs."""
    return {job.name for job in connect().jobs.list()}


def wait(before: set[str]) -> None:
    """Wait for newer jobs to end, as the text around a cell asks of who reads it, as long as for a cell."""
    until = time.monotonic() + PATIENCE
    while any(job.name not in before and job.status not in FINAL for job in connect().jobs.list()):
        if time.monotonic() > until:
            return
        time.sleep(1)


def outcomes(names: set[str]) -> tuple[dict[str, int], list[str]]:
    """Wait for jobs, and return how many ended with each status, and why the failed ones did."""
    client = connect()
    causes = [cause(client, name) for name in sorted(names)]
    return dict(Counter(client.jobs.get(name).status for name in names)), list(filter(None, causes))


def cause(client: MLClient, name: str) -> str:
    """Wait for a job, and return why it or a part of it failed: the last error in its log, if it has one."""
    with redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        try:
            client.jobs.stream(name)
        except JobException as error:
            parts = [part.name for part in client.jobs.list(parent_job_name=name) if part.status == "Failed"]
            client.jobs.download(name, download_path=folder)
            logs = [log.read_text("utf-8", "replace") for log in Path(folder).rglob("std_log.txt")]
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


if __name__ == "__main__":
    sys.exit(main())
