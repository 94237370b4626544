"""settings.py: a rule for every setting, and the names that are none."""

import ast
import re

import nbformat
import pytest
from conftest import ROOT

import settings

NOTEBOOK = ROOT / "finetune_phi3_ultrachat.ipynb"
CELLS = {
    cell.id: cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"
}
GIVEN = {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(CELLS["parameters"]).body}


def test_each_parameter_has_a_rule_and_each_rule_is_of_a_parameter():
    assert settings.PARAMETERS.keys() == GIVEN.keys()


def reached() -> set[str]:
    """Return the names that what is given to `fingerprint` in step 5 is made of, over all cells."""
    tree = ast.parse("\n".join(CELLS.values()))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    [call] = [node for node in calls if ast.unparse(node.func).endswith("fingerprint")]
    made_of, names, waiting = {}, set(), loaded(call)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            made_of[node.name] = loaded(node)
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            for name in loaded(ast.Tuple(getattr(node, "targets", None) or [node.target])):
                made_of.setdefault(name, set()).update(loaded(node.value))
    while waiting - names:
        names |= waiting
        waiting = set().union(*(made_of.get(name, set()) for name in names))
    return names


def loaded(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


SAME_JOB = {  # parameters that make no other job, and why
    "subscription_id resource_group workspace_name": "a job is looked for in its workspace",
    "resume_job_name": "it names the job",
    "job_limit_minutes": "it says how long the job is waited for",
    "dataset_name dataset_split_pc": "the content of the files is in it, their sha256",
    "download_dir": "where the rows lie, not which they are",
    "endpoint_name instance_type instance_count keep_endpoint": "of the endpoint, made after the job",
    "score_samples score_seed score_parameters compare_with_base": "of the questions, asked after the job",
    "delete_cluster": "after the job",
}


def test_each_parameter_is_in_the_fingerprint_of_the_job_or_has_a_reason_not_to_be():
    excused = {name for names in SAME_JOB for name in names.split()}
    assert [name for name in GIVEN if name not in reached() | excused] == []
    assert {"model_name", "finetune_parameters"} <= reached()


def test_each_rule_says_type_and_meaning_in_valid_json_schema():
    for schema in (settings.PARAMETERS | settings.ANSWERS | settings.INPUTS).values():
        settings.Validator.check_schema(schema)
    assert [name for name, rule in settings.PARAMETERS.items() if not rule.get("description")] == []
    assert all(settings.needed(rule) for rule in settings.PARAMETERS.values())


def test_the_published_parameters_are_fine():
    settings.check_parameters(GIVEN | {"In": ["", *CELLS.values()]})


def test_every_limit_is_that_of_an_input(registry_client):
    component = registry_client.components.get("chat_completion_pipeline", label="latest")
    assert settings.INPUTS.keys() - settings.inputs(component).keys() == set()


@pytest.mark.parametrize(
    "cell",
    [
        "# Parameters\ndataset_spilt_pc = 1\n",
        CELLS["parameters"].replace("dataset_split_pc", "dataset_spilt_pc"),
        "dataset_spilt_pc = 1",
        "score_samples = 1\ndataset_spilt_pc = 1",
    ],
    ids=["injected by papermill", "in the cell of parameters", "in a cell of its own", "beside another"],
)
def test_a_misspelt_parameter_is_refused_with_the_nearest_name(cell):
    words = "there is no parameter dataset_spilt_pc; did you mean dataset_split_pc?"
    with pytest.raises(ValueError, match=re.escape(words)):
        settings.check_parameters(GIVEN | {"In": ["", CELLS["parameters"], cell, CELLS["setup"]]})


def test_a_parameter_that_papermill_injects_and_nobody_knows_is_refused():
    with pytest.raises(ValueError, match=r"there is no parameter colour$"):
        settings.check_parameters(GIVEN | {"In": [CELLS["parameters"], "# Parameters\ncolour = 1\n"]})


@pytest.mark.parametrize(
    "cells",
    [
        [CELLS["parameters"].replace("dataset_split_pc", "dataset_spilt_pc"), CELLS["parameters"]],
        ['home = "/data"\ndownload_dir = home + "/rows"'],
        ["frame = 3", "no Python at all", "%matplotlib inline"],
    ],
    ids=["mended since", "a name that the cell uses", "cells of one's own"],
)
def test_what_is_no_misspelt_parameter_is_left_alone(cells):
    settings.check_parameters(GIVEN | {"In": [CELLS["parameters"], *cells]})
