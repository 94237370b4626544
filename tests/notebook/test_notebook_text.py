"""The notebook as a text: what it says and names, without running it."""

import ast
import importlib
import inspect
import json
import re
import statistics
from collections import Counter
from pathlib import Path

import azure.ai.ml.operations as operations
import nbformat
import pytest
from azure.ai.ml import MLClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = nbformat.read(ROOT / "finetune_phi3_ultrachat.ipynb", as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
TREE = ast.parse("\n".join(cell.source for cell in CODE))
BESIDE = {file.name: file.read_text(encoding="utf-8") for file in sorted(ROOT.glob("*.py"))}
TREES = {"notebook": TREE, **{name: ast.parse(source) for name, source in BESIDE.items()}}
MAIN_CALLS = {  # what each step is about
    "setup": "MLClient(credential",
    "model": "registry.models.get(",
    "compute": "workspace.compute.begin_create_or_update(",
    "finetune": "workspace.jobs.create_or_update(",
    "register": "workspace.models.create_or_update(",
    "deploy": "workspace.online_deployments.begin_create_or_update(",
    "delete": "workspace.online_endpoints.begin_delete(",
}
PRIVATE = {"_runs_operations", "_system_metadata"}  # what the SDK offers no public call for; said where it is
SEEDS = ROOT / "local_azureml" / "seeds"
STEPS = [
    "1. Set up",
    "2. Choose the model",
    "3. Get a compute cluster",
    "4. Look at the data",
    "5. Fine-tune",
    "6. Register the model",
    "7. Deploy",
    "8. Ask the model",
    "9. Delete",
    "Your turn",
]
OPERATIONS = {
    "compute": operations.ComputeOperations,
    "jobs": operations.JobOperations,
    "models": operations.ModelOperations,
    "components": operations.ComponentOperations,
    "online_endpoints": operations.OnlineEndpointOperations,
    "online_deployments": operations.OnlineDeploymentOperations,
    "workspaces": operations.WorkspaceOperations,
}


def imported() -> dict[str, object]:
    """Return each name that a `from azure... import` of the notebook binds, with what it is."""
    statements = [node for node in ast.walk(TREE) if isinstance(node, ast.ImportFrom)]
    return {
        name.asname or name.name: getattr(importlib.import_module(statement.module), name.name)
        for statement in statements
        if statement.module.startswith("azure")
        for name in statement.names
    }


def parameters() -> dict[str, object]:
    """Return the parameters and their literals."""
    [cell] = [cell for cell in CODE if "parameters" in cell.metadata.get("tags", [])]
    return {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(cell.source).body}


def accepts(function, keyword: str) -> bool:
    """Say whether a function, or a class or one above it, names the keyword; `**kwargs` names none."""
    makers = [one.__init__ for one in function.__mro__] if inspect.isclass(function) else [function]
    return any(
        keyword in inspect.signature(maker).parameters for maker in makers if maker is not object.__init__
    )


def lines(cell) -> int:
    return sum(1 for line in cell.source.splitlines() if line.strip())


def bound(tree: ast.AST) -> set[str]:
    """Return the names that a cell binds for good, and no names within its functions and comprehensions."""
    inner = (ast.FunctionDef, ast.Lambda, ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp)
    names, waiting = set(), [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        if not isinstance(node, inner):
            waiting += ast.iter_child_nodes(node)
    return names


def test_the_headings_are_the_nine_steps_in_order_and_then_the_readers_turn():
    texts = "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
    assert re.findall(r"^## (.*)", texts, re.M) == STEPS


def test_each_step_is_a_text_with_its_heading_and_one_code_cell():
    kinds = "".join(cell.cell_type[0] for cell in NOTEBOOK.cells)
    assert re.fullmatch("m+c(m+c){9}m+", kinds)
    before = [NOTEBOOK.cells[place.start() - 1] for place in re.finditer("c", kinds)][1:]
    assert all(cell.source.startswith("## ") or "\n## " in cell.source for cell in before)


def test_the_first_code_cell_holds_the_parameters_and_no_other_does():
    tagged = [cell.id for cell in CODE if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == [CODE[0].id]


def test_a_parameter_is_a_lower_case_name_with_a_plain_literal():
    assert len(parameters()) > 20 and all(name.islower() for name in parameters())


def test_each_parameter_has_its_unit_or_reason_at_the_end_of_its_line():
    assert [
        line for line in CODE[0].source.splitlines() if "  # " not in line and "likewise" not in line
    ] == []


def test_each_parameter_is_used():
    loaded = {
        node.id for node in ast.walk(TREE) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    assert set(parameters()) - loaded == set()


def test_no_name_is_bound_by_two_cells():
    counts = Counter(name for cell in CODE for name in bound(ast.parse(cell.source)))
    assert [name for name, count in counts.items() if count > 1] == []


def test_the_emulator_is_not_named():
    text = "\n".join([*(cell.source for cell in NOTEBOOK.cells), *BESIDE.values()])
    assert not re.search(r"local_azureml|emulat|simulat|standin|localhost|127\.0\.0\.1", text.lower())


def test_only_named_errors_are_caught_or_suppressed():
    nodes = [node for tree in TREES.values() for node in ast.walk(tree)]
    handlers = [node for node in nodes if isinstance(node, ast.ExceptHandler)]
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    caught = [ast.unparse(node.type) if node.type else "" for node in handlers]
    for call in calls:
        if ast.unparse(call.func).endswith("suppress"):
            caught += map(ast.unparse, call.args)
    assert not {"", "Exception", "BaseException"} & set(caught)


def test_the_median_step_has_at_most_16_lines_and_the_longest_32():
    sizes = [lines(cell) for cell in CODE[1:]]
    assert (len(sizes), statistics.median(sizes) <= 16, max(sizes) <= 32) == (9, True, True)


def test_at_most_15_percent_of_the_steps_lines_call_what_protects():
    calls = [line for cell in CODE[1:] for line in cell.source.splitlines() if "safe." in line]
    assert len(calls) <= 0.15 * sum(map(lines, CODE[1:]))


def test_there_are_eight_words_of_text_for_each_line_of_code():
    words = sum(len(cell.source.split()) for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
    assert words >= 8 * sum(map(lines, CODE))


def test_what_protects_has_at_most_450_lines():
    assert BESIDE["safeguards.py"].count("\n") <= 450


def test_azure_is_reached_within_ten_lines():
    first = next(cell.source for cell in CODE if cell.id == "setup").split("safe.log_in(")[0]
    assert sum(1 for line in first.splitlines() if line.strip()) <= 10


def test_no_cell_makes_a_private_call_and_the_module_only_those_that_it_explains():
    used = {
        name: {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr)
        }
        for name, tree in TREES.items()
    }
    quoted = set(re.findall(r'"(_[a-z]\w+)"', BESIDE["safeguards.py"]))
    assert (used["notebook"], used["safeguards.py"] | quoted) == (set(), PRIVATE)


def test_the_call_that_a_step_is_about_stands_unnested_in_its_cell():
    cells = {cell.id: ast.parse(cell.source).body for cell in CODE}
    for step, call in MAIN_CALLS.items():
        lines = [ast.unparse(node) for node in cells[step] if isinstance(node, (ast.Assign, ast.Expr))]
        assert any(call in line and "lambda" not in line for line in lines), step


def test_every_stored_plot_has_a_text_for_those_who_cannot_see_it():
    plots = [output for cell in CODE for output in cell.outputs if "image/png" in output.get("data", {})]
    assert plots and all(plot.metadata["image/png"]["alt"] for plot in plots)


def test_every_stored_table_has_its_texts_on_the_left():
    outputs = [output for cell in CODE for output in cell.outputs if "data" in output]
    pages = [output.data["text/html"] for output in outputs if "text/html" in output.data]
    tables = [page for page in pages if "<table" in page]
    assert len(tables) >= 5 and all("text-align: left" in page for page in tables)


def test_no_output_holds_an_identifier_or_a_key():
    outputs = json.dumps([cell.outputs for cell in CODE])
    assert (
        re.findall(
            r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|Bearer |sig=|/subscriptions/\w",
            outputs,
        )
        == []
    )


def test_the_kernel_is_python3_and_the_cell_ids_are_words():
    assert NOTEBOOK.metadata.kernelspec.name == "python3"
    assert [cell.id for cell in NOTEBOOK.cells if not re.fullmatch(r"[a-z-]+", cell.id)] == []


def test_each_keyword_argument_exists_in_the_installed_sdk():
    known = imported()
    calls = [node for node in ast.walk(TREE) if isinstance(node, ast.Call)]
    named = [(ast.unparse(call.func).removeprefix("entities."), call.keywords) for call in calls]
    known |= vars(known["entities"])
    pairs = {(name, keyword.arg) for name, keywords in named for keyword in keywords if keyword.arg}
    pairs = {(name, keyword) for name, keyword in pairs if name in known}
    assert len(pairs) > 20
    assert [pair for pair in pairs if not accepts(known[pair[0]], pair[1])] == []


def test_each_operation_exists_in_the_installed_sdk():
    text = "\n".join([*(cell.source for cell in CODE), *BESIDE.values()])
    used = set(re.findall(r"\b(?:workspace|registry|ends)\.(\w+)\.([a-z]\w+)", text))
    assert len(used) > 15
    assert [pair for pair in used if not hasattr(OPERATIONS[pair[0]], pair[1])] == []
    assert [group for group, _ in used if not hasattr(MLClient, group)] == []


@pytest.mark.parametrize(("module", "name"), [("safeguards", "safe"), ("show", "show")])
def test_each_function_beside_the_notebook_that_a_cell_calls_is_there(module, name):
    used = set(re.findall(rf"\b{name}\.(\w+)", "\n".join(cell.source for cell in CODE)))
    there = importlib.import_module(module)
    assert len(used) > 3 and [one for one in used if not hasattr(there, one)] == []


def test_the_training_inputs_exist_in_the_component():
    [file] = (SEEDS / "registry" / "components" / "chat_completion_pipeline").glob("*.json")
    inputs = json.loads(file.read_text())["properties"]["componentSpec"]["inputs"]
    tutorial = [
        node.value
        for node in ast.walk(TREE)
        if isinstance(node, (ast.Assign, ast.AugAssign)) and ast.unparse(node).startswith("tutorial ")
    ]
    [call] = [
        node
        for node in ast.walk(TREE)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "component"
    ]
    assert len(tutorial) > 1
    named = {
        *(name for part in tutorial for name in ast.literal_eval(part)),
        *(keyword.arg for keyword in call.keywords if keyword.arg),
    }
    assert named - set(inputs) == set()


def test_the_sizes_exist_in_the_region():
    known = {size["name"] for size in json.loads((SEEDS / "sizes.json").read_text())}
    assert {parameters()["compute_size"], parameters()["instance_type"]} <= known
