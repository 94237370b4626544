"""Faults by name, and the kept table that `make faults` makes of all of them."""

import os
import subprocess
import sys

import httpx
import pytest
from conftest import ROOT, client_of, raw_client

from local_azureml.cli import main
from local_azureml.faults import FAULTS
from scenarios.faults import CASES
from scenarios.interruptions import STEPS, STEPS_OF, WAYS


def test_run_waits_for_what_its_command_left_behind(tmp_path):
    left = f"(sleep 1; touch {tmp_path}/done) >/dev/null 2>&1 &"
    run = [sys.executable, "-m", "local_azureml", "run", "--", "sh", "-c", left]
    assert subprocess.run(run, cwd=ROOT, timeout=60).returncode == 0
    assert (tmp_path / "done").exists()


def test_each_fault_has_a_row_in_the_table():
    assert {case.fault.partition("=")[0] for case in CASES.values() if case.fault} == set(FAULTS)


def kept_rows() -> dict[str, list[str]]:
    """Return the cells of each row of the kept table, by what happens."""
    lines = (ROOT / "docs" / "faults.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split(" | ")] for line in lines if line.startswith("| ")]
    return {cells[0].removeprefix("| "): cells for cells in rows}


def test_the_kept_table_shows_of_each_fault_what_it_has_to_come_to():
    rows = kept_rows()
    for case in CASES.values():
        _, step, _, node_seconds, left, reads = rows[case.name]
        assert case.step is None or step.partition(".")[0] == str(case.step or "-"), case.name
        assert (left != "nothing") == bool(case.leaves) and (case.spends or node_seconds == "0"), case.name
        assert step == "-" or "Error" in reads, case.name


def test_the_kept_table_shows_of_each_interruption_its_step_and_no_endpoint():
    rows = kept_rows()
    cuts = [(way, step) for way in WAYS for step in STEPS_OF.get(way, STEPS)]
    assert [cut for cut in cuts if rows["{}, step {}".format(*cut)][1].partition(".")[0] != cut[1]] == []
    endpoints = [name for name, cells in rows.items() if "endpoint" in cells[4]]
    assert sorted(endpoints) == ["all killed, step 8", "delete-failed=1000", "the next run"]


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("flood", "no fault named 'flood'; there is: no-credential, "),
        ("slow=much", "the fault slow takes a number; 'much' was given"),
        ("throttled=0", "the fault throttled takes a whole number above 0; '0' was given"),
        ("answer-shape=round", "the fault answer-shape takes one of mlflow, vllm, openai; 'round' was given"),
        ("quota-short=3", "the fault quota-short takes no value; '3' was given"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_in_one_sentence(fault, complaint, capsys):
    assert main(["run", "--fault", fault, "--", "true"]) == 2
    assert capsys.readouterr().err.startswith(f"local_azureml: {complaint}")


def test_the_list_of_faults_names_each_with_its_values(capsys):
    assert main(["--list-faults"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[0].partition("[")[0] for line in lines] == list(FAULTS)
    assert "answer-shape[=mlflow|vllm|openai] " in "\n".join(lines)


def test_a_throttled_request_says_when_to_come_back(emulator_with, arm):
    emulator_with("throttled=1")
    with raw_client(dict(os.environ), token=False) as client:
        answer = client.get(arm.workspace)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")


def test_a_reset_connection_is_reset_without_an_answer(emulator_with, arm):
    emulator_with("reset=1")
    with raw_client(dict(os.environ), token=False) as client, pytest.raises(httpx.TransportError):
        client.get(arm.workspace)


def test_somebody_elses_endpoint_is_listed_and_its_name_refused(emulator_with):
    from azure.ai.ml.entities import ManagedOnlineEndpoint
    from azure.core.exceptions import HttpResponseError

    emulator_with("endpoint-taken=theirs")
    endpoints = client_of().online_endpoints
    assert [endpoint.name for endpoint in endpoints.list()] == ["theirs"]
    with pytest.raises(HttpResponseError, match="the endpoint name 'theirs' is taken"):
        endpoints.begin_create_or_update(ManagedOnlineEndpoint(name="theirs"))
