"""The notebook as a text: what it says and names, without running it."""

import ast
import importlib
import inspect
import json
import re
from pathlib import Path

import azure.ai.ml.operations as operations
import nbformat
import pytest
from azure.ai.ml import MLClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = nbformat.read(ROOT / "finetune_phi3_ultrachat.ipynb", as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
TREE = ast.parse("\n".join(cell.source for cell in CODE))
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
LONGEST_CELL = 97
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
    known = inspect.signature(function).parameters
    return keyword in known or any(one.kind is one.VAR_KEYWORD for one in known.values())


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


def test_no_step_changes_a_parameter():
    steps = ast.parse("\n".join(cell.source for cell in CODE[1:]))
    stored = {
        node.id for node in ast.walk(steps) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    assert stored & set(parameters()) == set()


@pytest.mark.parametrize(
    "word", ["local_azureml", "stand-in", "standin", "localhost", "127.0.0.1", "emulat", "simulat"]
)
def test_the_stand_in_is_not_named(word):
    assert word not in "\n".join(cell.source for cell in NOTEBOOK.cells).lower()


def test_only_named_errors_are_caught():
    caught = [
        ast.unparse(node.type) if node.type else ""
        for node in ast.walk(TREE)
        if isinstance(node, ast.ExceptHandler)
    ]
    assert caught and not {"", "Exception", "BaseException"} & set(caught)


def test_no_cell_is_too_long():
    assert [cell.id for cell in CODE if len(cell.source.splitlines()) > LONGEST_CELL] == []


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
    text = "\n".join(cell.source for cell in CODE)
    used = set(re.findall(r"\b(?:workspace|registry)\.(\w+)\.([a-z]\w+)", text))
    assert len(used) > 15
    assert [pair for pair in used if not hasattr(OPERATIONS[pair[0]], pair[1])] == []
    assert [group for group, _ in used if not hasattr(MLClient, group)] == []


def test_the_training_inputs_exist_in_the_component():
    [file] = (SEEDS / "registry" / "components" / "chat_completion_pipeline").glob("*.json")
    inputs = json.loads(file.read_text())["properties"]["componentSpec"]["inputs"]
    [tutorial] = [
        node.value
        for node in ast.walk(TREE)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "tutorial"
    ]
    [call] = [
        node
        for node in ast.walk(TREE)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "component"
    ]
    named = {*ast.literal_eval(tutorial), *(keyword.arg for keyword in call.keywords if keyword.arg)}
    assert named - set(inputs) == set()


def test_the_sizes_exist_in_the_region():
    known = {size["name"] for size in json.loads((SEEDS / "sizes.json").read_text())}
    assert {parameters()["compute_size"], parameters()["instance_type"]} <= known
