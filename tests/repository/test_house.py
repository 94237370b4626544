"""The emulator's rooms: nothing grows too long, and services know nothing of the engine."""

import ast
from importlib.util import resolve_name
from pathlib import Path

HOUSE = Path(__file__).parents[2] / "local_azureml"
ROOMS = ("scenarios", "benchmarks", "tools")  # which keep its limits
FILES = sorted(file for room in (HOUSE, *map(HOUSE.with_name, ROOMS)) for file in room.rglob("*.py"))
LONGEST_FILE, LONGEST_CLASS = 300, 200  # lines
SERVICES = sorted([*(HOUSE / "control_plane").glob("*.py"), *(HOUSE / "data_plane").glob("*.py")])
ENTRANCE = {HOUSE / f"{name}.py" for name in ("__main__", "cli", "server", "app", "middleware", "timeouts")}
GROUND = sorted(set(HOUSE.glob("*.py")) - ENTRANCE)


def imported(file: Path) -> set[str]:
    """Return the rooms and modules of the emulator that a file imports: "engine", "cloud"."""
    names, package = set(), ".".join(file.relative_to(HOUSE.parent).parts[:-1])
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            names |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("local_azureml.")}


def test_no_file_is_too_long():
    long = {file.name: count for file in FILES if (count := file.read_text().count("\n")) > LONGEST_FILE}
    assert long == {}


def test_no_class_is_too_long():
    classes = [node for file in FILES for node in ast.walk(ast.parse(file.read_text()))]
    long = {
        node.name: lines
        for node in classes
        if isinstance(node, ast.ClassDef) and (lines := node.end_lineno - node.lineno + 1) > LONGEST_CLASS
    }
    assert long == {}


def test_services_do_not_import_the_engine_nor_the_control_plane_the_data_plane():
    assert [file for file in SERVICES if "engine" in imported(file)] == []
    assert [file for file in (HOUSE / "control_plane").glob("*.py") if "data_plane" in imported(file)] == []


def test_the_ground_imports_no_room():
    rooms = {"control_plane", "data_plane", "engine"}
    assert [file for file in GROUND if imported(file) & rooms] == []
