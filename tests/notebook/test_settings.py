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
