"""`python -m local_azureml`: what it prints, starts, bills, leaves, and refuses."""

import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import ELSEWHERE, ROOT, Emulator, raw_client

from local_azureml import identifiers
from local_azureml.cli import main
from local_azureml.context import Context

PROGRAM = [sys.executable, "-m", "local_azureml"]
CLIENT = (
    f"workspace = {identifiers.WORKSPACE_ID!r}\n"
    + """
import os, ssl, sys, json, urllib.request as web

def send(method, path, body=None, **headers):
    data = json.dumps(body).encode() if body else None
    request = web.Request(os.environ["HF_ENDPOINT"] + path, data, headers, method=method)
    return web.urlopen(request).read()

asked = "/identity/token?resource=https://ml.azure.local"
token = json.loads(send("GET", asked, **{"X-IDENTITY-HEADER": os.environ["IDENTITY_HEADER"]}))["access_token"]
headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
scale = {"minNodeCount": 1, "maxNodeCount": 1}
cluster = {"computeType": "AmlCompute", "properties": {"vmSize": "Standard_DS3_v2", "scaleSettings": scale}}
version = "?api-version=2025-12-01"
send("PUT", f"{workspace}/computes/kept{version}", {"properties": cluster}, **headers)
endpoint = {"location": "eastus", "properties": {"authMode": "Key"}}
send("PUT", f"{workspace}/onlineEndpoints/forgotten{version}", endpoint, **headers)
print(os.environ["HF_ENDPOINT"])
sys.exit(3)
"""
)


@pytest.fixture(scope="module")
def bystander(tmp_path_factory) -> Iterator[psutil.Popen]:
    """A process with the variables of an earlier start on a data folder, which is its working directory."""
    folder = tmp_path_factory.mktemp("run")
    earlier = Context(folder, 1, identifiers.SEEDS / "base_model")
    earlier.state.close()
    with psutil.Popen(["sleep", "100"], cwd=folder, env={**os.environ, **earlier.environment()}) as process:
        yield process
        process.kill()


@pytest.fixture(scope="module")
def ran(bystander) -> subprocess.CompletedProcess:
    """A command that made a cluster and an endpoint, forgot both, and ended with status 3."""
    folder = Path(bystander.cwd())
    (folder / "client.py").write_text(CLIENT)
    command = [*PROGRAM, "run", "--data-dir", folder, "--", sys.executable, folder / "client.py"]
    return subprocess.run(
        command, cwd=ROOT, env=bystander.environ(), capture_output=True, text=True, timeout=240
    )


def test_run_ends_with_the_commands_own_status(ran):
    assert ran.returncode == 3, ran.stderr


def test_run_says_at_the_end_what_was_billed_and_what_still_runs(ran):
    billed = re.sub(r"\d+ node-seconds", "N node-seconds", ran.stderr)
    assert billed == (
        "Azure would have billed: cluster kept (Standard_DS3_v2): N node-seconds\n"
        "left running, stopped now: endpoint forgotten (no deployment)\n"
    )


def test_nothing_listens_when_run_has_ended(ran):
    port = int(ran.stdout.rpartition(":")[2])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_no_process_is_left_when_run_has_ended(ran):
    left = [process for process in psutil.process_iter() if carries(process, ran.stdout.strip())]
    assert left == []


def carries(process: psutil.Process, address: str) -> bool:
    try:
        return process.environ().get("HF_ENDPOINT") == address
    except psutil.Error:
        return False


def test_run_leaves_alone_who_was_there_before(ran, bystander):
    assert bystander.status() == psutil.STATUS_SLEEPING


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a test choose the thread")
def test_a_killed_fork_server_is_there_again_before_it_is_needed_and_any_threads_signal_stops_all(tmp_path):
    """While the libraries are still imported."""
    served = Emulator(tmp_path / "cloud")
    emulator = psutil.Process(served.process.pid)
    with raw_client(served.environment) as http:
        size = {"computeType": "AmlCompute", "properties": {"vmSize": "Standard_DS3_v2"}}
        http.put(f"{identifiers.WORKSPACE_ID}/computes/gpu", json={"properties": size}).raise_for_status()
    while not (first := emulator.children()):
        time.sleep(0.05)
    first[0].kill()
    while not (second := set(emulator.children()) - set(first)):
        time.sleep(0.05)
    ctypes.CDLL(None).tgkill(emulator.pid, emulator.threads()[1].id, signal.SIGINT)
    assert served.process.wait(60) == 0
    assert served.end() == "Azure would have billed: nothing\nstill running: nothing\n"
    assert not second.pop().is_running()


def test_ctrl_c_while_the_emulator_starts_is_one_sentence(tmp_path):
    (tmp_path / "uvicorn.py").write_text("import time; print('importing', flush=True); time.sleep(600)")
    command = [*PROGRAM, "run", "--data-dir", tmp_path / "cloud", "--", "true"]
    search = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=search, **pipes) as starting:
        assert starting.stdout.readline() == "importing\n"
        starting.send_signal(signal.SIGINT)
        said = starting.communicate(timeout=240)[1]
    assert (starting.returncode, said) == (130, "local_azureml: interrupted\n")


def test_help_names_both_commands_and_shows_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(word in shown for word in ("run", "serve", "examples:", "papermill"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "say what to do: run -- COMMAND, serve, or --list-faults"),
        (["dance"], "invalid choice: 'dance'"),
        (["run"], "run needs a command: "),
        (["run", "--", "no-such-program"], "no such program: 'no-such-program'"),
        (["serve", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["serve", "--port", "x"], "argument --port: invalid int value: 'x'"),
        (["serve", "--port", "70000"], "port 70000 cannot be used"),
        (["serve", "--base-model", "/nowhere"], "--base-model /nowhere: the base model nowhere"),
        (["serve", "--hub", "me"], "--hub me is no address; the real hub is at https://huggingface.co"),
        (["serve", "--data-dir", __file__], f"--data-dir {__file__} cannot be used: File exists"),
    ],
)
def test_bad_usage_ends_with_status_2_and_one_sentence(capsys, variables_kept, arguments, sentence):
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = ended.code
    last = capsys.readouterr().err.splitlines()[-1]
    assert (status, sentence in last) == (2, True), last


def test_another_hub_comes_with_the_callers_own_cache(emulator_with):
    hub = "https://hub.example"
    variables = emulator_with(options=("--hub", hub)).context.environment()
    assert (variables["HF_ENDPOINT"], "HF_HOME" in variables) == (hub, False)


def test_a_port_in_use_is_said_in_one_sentence(emulator, environment, capsys, variables_kept):
    port = environment["HF_ENDPOINT"].rpartition(":")[2]
    assert main(["serve", "--port", port]) == 2
    assert capsys.readouterr().err == (
        f"local_azureml: port {port} cannot be used ([Errno 98] Address already in use); "
        "choose another with --port, or none\n"
    )


def test_a_state_that_is_no_database_is_said_without_a_traceback(tmp_path, capsys, variables_kept):
    (tmp_path / "state.sqlite").write_text("gone" * 1000)
    assert main(["serve", "--data-dir", str(tmp_path)]) == 2
    assert f"--data-dir {tmp_path}: its state.sqlite can't be read (file is not" in capsys.readouterr().err


def test_a_data_folder_in_use_is_said_and_left_alone(emulator, capsys, variables_kept):
    assert main(["serve", "--data-dir", str(emulator.folder)]) == 2
    said = f"--data-dir {emulator.folder} is in use by another emulator: stop it, or give another\n"
    assert capsys.readouterr().err == f"local_azureml: {said}"


def test_clients_are_kept_from_asking_a_proxy_for_localhost(environment):
    assert "localhost" in environment["NO_PROXY"].split(",")


def test_every_variable_has_its_reason_on_the_page(environment):
    page = (ROOT / "local_azureml" / "README.md").read_text()
    assert [name for name in environment if f"`{name}`" not in page] == []


def test_what_is_not_played_is_answered_501_and_named(http, arm):
    answer = http.get(f"{arm.workspace}/batchEndpoints")
    message = f"GET {arm.workspace}/batchEndpoints is not part of the emulator"
    assert (answer.status_code, answer.json()["error"]["message"]) == (501, message)


def test_an_error_has_azures_envelope(http, arm):
    path = f"{arm.workspace}/computes/nope"
    error = http.get(path).json()["error"]
    assert {key: type(value) for key, value in error.items()} == {
        "code": str,
        "message": str,
        "details": list,
        "additionalInfo": list,
    }


def test_a_workspace_that_is_not_there_is_answered_with_the_one_that_is(http, arm):
    answer = http.get(f"{arm.workspace}x")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "ResourceNotFound")
    assert f"{Path(arm.workspace).name}" in answer.json()["error"]["message"]


def test_fixed_parts_of_a_path_are_read_in_any_capitals(http, arm):
    path = arm.workspace.replace("resourceGroups", "resourcegroups").replace("Microsoft.", "microsoft.")
    assert http.get(path).status_code == 200


PROGRAM_THAT_LOGS = """\
import json, os, mlflow
mlflow.log_text("a text", "text.txt")
print(json.dumps(dict(os.environ)))
"""


def test_nothing_that_leads_elsewhere_reaches_the_command(tmp_path):
    command = [
        *PROGRAM,
        "run",
        "--data-dir",
        tmp_path / "cloud",
        "--",
        sys.executable,
        "-c",
        PROGRAM_THAT_LOGS,
    ]
    long = tmp_path / f"a long name {'with umlauts äöü ' * 5}"
    long.mkdir()
    search = os.environ | ELSEWHERE | {"PYTHONPATH": f"{ROOT}", "TMPDIR": f"{long}"}
    ended = subprocess.run(command, cwd=tmp_path, env=search, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    got = json.loads(ended.stdout)
    assert {name: got[name] for name in ELSEWHERE.keys() & got.keys() if got[name] == ELSEWHERE[name]} == {
        name: ELSEWHERE[name] for name in ("LC_ALL", "PYTHONCOERCECLOCALE", "PYTHONSTARTUP")
    }
    assert (got["NO_PROXY"], got["PYTHONUTF8"]) == ("localhost,127.0.0.1", "1")
    assert got["PYTHONPATH"] == f"{ROOT}"  # the command is the caller's own


def test_the_lines_of_serve_hide_in_a_shell_what_run_hides_from_its_command(emulator):
    shell = subprocess.run(
        ["sh", "-c", f"{emulator.lines}\nenv"],
        env={"PATH": os.environ["PATH"], **ELSEWHERE},
        capture_output=True,
        text=True,
        timeout=240,
    )
    got = dict(line.split("=", 1) for line in shell.stdout.splitlines())
    kept = {name for name in ELSEWHERE.keys() & got.keys() if got[name] == ELSEWHERE[name]}
    assert (kept, shell.stderr) == ({"LC_ALL", "PYTHONCOERCECLOCALE", "PYTHONSTARTUP", "PYTHONUTF8"}, "")
