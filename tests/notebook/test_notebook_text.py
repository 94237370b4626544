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
SAFEGUARDS = (ROOT / "safeguards.py").read_text(encoding="utf-8")
TREES = {"notebook": TREE, "safeguards.py": ast.parse(SAFEGUARDS)}
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


def test_the_headings_are_the_nine_steps_in_order():
    texts = "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
    assert re.findall(r"^## (.*)", texts, re.M) == STEPS


def test_each_step_is_one_text_and_one_code_cell_behind_a_title_and_the_parameters():
    assert [cell.cell_type for cell in NOTEBOOK.cells] == ["markdown", "code"] * 10


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


@pytest.mark.parametrize(
    "word", ["local_azureml", "emulator", "standin", "localhost", "127.0.0.1", "emulat", "simulat"]
)
def test_the_emulator_is_not_named(word):
    assert word not in "\n".join([*(cell.source for cell in NOTEBOOK.cells), SAFEGUARDS]).lower()


@pytest.mark.parametrize("tree", TREES.values(), ids=list(TREES))
def test_only_named_errors_are_caught_or_suppressed(tree):
    caught = [
        ast.unparse(node.type) if node.type else ""
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            caught += map(ast.unparse, node.args)
    assert caught and not {"", "Exception", "BaseException"} & set(caught)


def test_the_median_step_has_at_most_18_lines_and_the_longest_40():
    sizes = [lines(cell) for cell in CODE[1:]]
    assert (len(sizes), statistics.median(sizes) <= 18, max(sizes) <= 40) == (9, True, True)


def test_there_are_six_words_of_text_for_each_line_of_code():
    words = sum(len(cell.source.split()) for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
    assert words >= 6 * sum(map(lines, CODE[1:]))


def test_no_cell_makes_a_private_call_and_the_module_only_those_that_it_explains():
    used = {
        name: {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr)
        }
        for name, tree in TREES.items()
    }
    quoted = set(re.findall(r'"(_[a-z]\w+)"', SAFEGUARDS))
    assert (used["notebook"], used["safeguards.py"] | quoted) == (set(), PRIVATE)


def test_the_calls_that_teach_stand_in_the_cells():
    for name, call in {
        "setup": "MLClient(credential",
        "model": "registry.models.get(",
        "compute": "workspace.compute.begin_create_or_update(",
        "finetune": "workspace.jobs.stream(job.name)",
        "register": "workspace.models.create_or_update(",
        "deploy": "workspace.online_deployments.begin_create_or_update(",
        "score": "workspace.online_endpoints.invoke(",
        "delete": "workspace.online_endpoints.begin_delete(",
    }.items():
        [cell] = [cell for cell in CODE if cell.id == name]
        assert call in cell.source


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
    calls = [
        node
        for node in ast.walk(TREE)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in known
    ]
    pairs = {(call.func.id, keyword.arg) for call in calls for keyword in call.keywords if keyword.arg}
    assert len(pairs) > 20
    assert [pair for pair in pairs if not accepts(known[pair[0]], pair[1])] == []


def test_each_operation_exists_in_the_installed_sdk():
    text = "\n".join([*(cell.source for cell in CODE), SAFEGUARDS])
    used = set(re.findall(r"\b(?:workspace|registry|ends)\.(\w+)\.([a-z]\w+)", text))
    assert len(used) > 15
    assert [pair for pair in used if not hasattr(OPERATIONS[pair[0]], pair[1])] == []
    assert [group for group, _ in used if not hasattr(MLClient, group)] == []


def test_each_function_of_the_module_that_a_cell_calls_is_there():
    import safeguards

    used = set(re.findall(r"\bsafe\.(\w+)", "\n".join(cell.source for cell in CODE)))
    assert len(used) > 15 and [name for name in used if not hasattr(safeguards, name)] == []


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
