"""Write the tables that the pages take from elsewhere: parameters, operations, component inputs, faults.

The marks of what the notebook uses are kept as they are; a test compares them with a run.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from local_azureml import app  # noqa: E402
from local_azureml.faults import FAULTS  # noqa: E402
from local_azureml.pipeline.inputs import USES  # noqa: E402

README, STAND_IN = ROOT / "README.md", ROOT / "local_azureml" / "README.md"
USED = "●"


def parameters() -> Iterator[tuple[str, str, str]]:
    """Give each parameter of the notebook: its name, its default, what it is."""
    cells = nbformat.read(ROOT / "finetune_phi3_ultrachat.ipynb", as_version=4).cells
    source = next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    for line in source.splitlines():
        yield re.fullmatch(r"(\w+) = (.+?)  # (.+)", line).groups()


def operations() -> Iterator[tuple[str, str, str]]:
    """Give each operation of the stand-in: its method, its path, what it does."""
    services = dict.fromkeys([*app.CONTROL_PLANE, *app.OWN_KEYS])
    routers = [app.workspace.public, *(service.router for service in services)]
    for route in (route for router in routers for route in router.routes):
        does = (route.endpoint.__doc__ or route.endpoint.__name__.replace("_", " ")).partition("\n")[0]
        for method in sorted(route.methods):
            yield method, route.path, does


def pattern(path: str) -> str:
    """Return the regular expression of the paths that a route takes."""
    return re.sub(r"\\{\w+(:path)?\\}", lambda found: ".*" if found[1] else "[^/]+", re.escape(path))


def short(path: str) -> str:
    return path.replace(app.workspace.cloud.WORKSPACE_PATH, "WORKSPACE").replace(
        f"/providers/{app.PROVIDER}", "/…"
    )


def used(page: str) -> set[tuple[str, str]]:
    """Return method and path, as the page writes them, of the operations that carry the mark."""
    return set(re.findall(rf"^\| {USED} \| (\w+) \| `(.+?)` \|", page, re.M))


def table(head: str, rows: Iterable[str]) -> str:
    return "\n".join([head, re.sub("[^|]+", "---", head), *rows])


def parameter_table() -> str:
    rows = (f"| `{name}` | `{default}` | {what} |" for name, default, what in parameters())
    return table("| parameter | default | what it is |", rows)


def operation_table(marked: set[tuple[str, str]]) -> str:
    rows = (
        f"| {USED if (method, short(path)) in marked else ' '} | {method} | `{short(path)}` | {does} |"
        for method, path, does in operations()
    )
    return table("| | method | path | does |", rows)


def pages() -> dict[Path, str]:
    """Return the pages as they should be."""
    readme, stand_in = README.read_text(encoding="utf-8"), STAND_IN.read_text(encoding="utf-8")
    inputs = (f"| `{name}` | {use} |" for name, use in USES.items())
    faults = (f"| `{name}` | {meaning} |" for name, (meaning, _) in FAULTS.items())
    stand_in = with_table(stand_in, operation_table(used(stand_in)))
    stand_in = with_table(stand_in, table("| input | here |", inputs))
    stand_in = with_table(stand_in, table("| fault | what happens |", faults))
    return {README: with_table(readme, parameter_table()), STAND_IN: stand_in}


def with_table(page: str, table: str) -> str:
    """Return the page with `table` in the place of the table that has the same head."""
    head = re.escape("\n".join(table.splitlines()[:2]))
    return re.sub(rf"{head}\n(\|.*\n)*", lambda _: f"{table}\n", page)


if __name__ == "__main__":
    for path, content in pages().items():
        path.write_text(content, encoding="utf-8")
