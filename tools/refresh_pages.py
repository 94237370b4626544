"""Write what the pages take from elsewhere: parameters, operations, MLflow's calls, faults.

The marks of what the notebook uses are kept as they are; a test compares them with a run.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import settings  # noqa: E402
from local_azureml import app, identifiers  # noqa: E402
from local_azureml.data_plane import mlflow_compatibility  # noqa: E402
from local_azureml.faults import FAULTS  # noqa: E402

EMULATOR = ROOT / "local_azureml" / "README.md"
PARAMETERS = ROOT / "docs" / "parameters.md"
USED = "●"


def notebook_cells() -> dict[str, nbformat.NotebookNode]:
    """Return the notebook's cells by their ids."""
    cells = nbformat.read(ROOT / "finetune_phi3_ultrachat.ipynb", as_version=4).cells
    return {cell.id: cell for cell in cells}


def parameters() -> Iterator[tuple[str, str, str, str]]:
    """Give each parameter of the notebook: its name, its default, what it takes, what it is."""
    for line in notebook_cells()["parameters"].source.splitlines():
        name, default = re.match(r"(\w+) = (.+?)(?:  #|$)", line).groups()
        rule = settings.PARAMETERS[name]
        yield name, default, settings.needed(rule), rule["description"]


def operations() -> Iterator[tuple[str, str, str]]:
    """Give each operation of the emulator: its method, its path, what it does."""
    for route in [*app.ROUTES, *app.AT_ENDPOINT]:
        does = (route.endpoint.__doc__ or route.endpoint.__name__.replace("_", " ")).partition("\n")[0]
        for method in sorted(route.methods):
            yield method, route.path, does


def pattern(path: str) -> str:
    """Return the regular expression of the paths that a route takes."""
    return re.sub(
        r"\\{\w+(:\w+)?\\}", lambda found: ".*" if found[1] == ":path" else "[^/]+", re.escape(path)
    )


def short(path: str) -> str:
    path = path.replace(identifiers.WORKSPACE_PATH, "WORKSPACE").replace(":asset", "")
    return path.replace(f"/providers/{identifiers.PROVIDER}", "/…")


def used(page: str) -> set[tuple[str, str]]:
    """Return method and path, as the page writes them, of the operations that carry the mark."""
    return set(re.findall(rf"^\| {USED} \| (\w+) \| `(.+?)` \|", page, re.M))


def table(head: str, rows: Iterable[str]) -> str:
    return "\n".join([head, re.sub("[^|]+", "---", head), *rows])


def parameter_table() -> str:
    rows = (f"| `{name}` | `{default}` | {takes} | {what} |" for name, default, takes, what in parameters())
    return table("| parameter | default | takes | what it is |", rows)


def operation_table(marked: set[tuple[str, str]]) -> str:
    rows = (
        f"| {USED if (method, short(path)) in marked else ' '} | {method} | `{short(path)}` | {does} |"
        for method, path, does in operations()
    )
    return table("| | method | path | does |", rows)


def mlflow_table() -> str:
    def linked(source: str) -> str:
        return re.sub(r"((?:learn|github)\.[\w./-]+/([\w-]+))", r"[\2](https://\1)", source)

    rows = []
    for line in mlflow_compatibility.TABLE:
        there = "yes" if line.status == 200 else str(line.status)
        rows.append(f"| {line.what} | {there} | {line.instead} | {linked(line.source)} |")
    return table("| MLflow's calls | on Azure | works on both | source |", rows)


def pages() -> dict[Path, str]:
    """Return the pages as they should be."""
    parameters, emulator = (page.read_text("utf-8") for page in (PARAMETERS, EMULATOR))
    faults = (f"| `{name}` | {meaning} |" for name, (meaning, _) in FAULTS.items())
    emulator = with_table(emulator, operation_table(used(emulator)))
    emulator = with_table(emulator, mlflow_table())
    emulator = with_table(emulator, table("| fault | what happens |", faults))
    return {PARAMETERS: with_table(parameters, parameter_table()), EMULATOR: emulator}


def with_table(page: str, table: str) -> str:
    """Return the page with `table` in the place of the table whose head begins with the same two words."""
    head = re.escape("|".join(table.split("|")[:3]))
    page, count = re.subn(rf"^{head}\|.*\n(\|.*\n)+", lambda _: f"{table}\n", page, flags=re.M)
    if count != 1:
        raise LookupError(f"{count} tables begin with {'|'.join(table.split('|')[:3])} |: one is needed")
    return page


if __name__ == "__main__":
    for path, content in pages().items():
        path.write_text(content, encoding="utf-8")
