"""Sweeps: trials are sampled, run side by side, stopped early, and the best of them is found."""

import os
import time

import pytest
from clients import FINAL, SHORT, ended, log_of, make_command, reason
from conftest import PLAIN_JOB

LOG = """\
import json, os, ssl, sys, time, urllib.request
metric, value, *forever = sys.argv[1:]
trust = ssl.create_default_context(cafile=os.environ["REQUESTS_CA_BUNDLE"])
while True:
    body = {"run_id": os.environ["MLFLOW_RUN_ID"], "key": metric, "value": float(value)}
    body = json.dumps({**body, "timestamp": int(time.time() * 1000)}).encode()
    address = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/log-metric"
    headers = {"Authorization": "Bearer " + os.environ["MLFLOW_TRACKING_TOKEN"]}
    headers["Content-Type"] = "application/json"
    request = urllib.request.Request(address, body, headers)
    urllib.request.urlopen(request, context=trust).close()
    if not forever:
        break
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """A folder with a script that logs a metric, as `mlflow.log_metric` does, without its import."""
    place = tmp_path_factory.mktemp("code")
    (place / "log.py").write_text(LOG)
    return place


@pytest.fixture(scope="module")
def make_sweep(code):
    """A function that returns the sweep of a command over `space`."""

    def make(text: str, space: dict, sampling="grid", limits=None, goal="minimize", **options):
        one = make_command(text, code=code, inputs=dict.fromkeys(space, 0), **options)
        sweep = one(**space).sweep(
            primary_metric="loss", goal=goal, sampling_algorithm=sampling, compute=SHORT
        )
        sweep.set_limits(**({"max_total_trials": 4} | (limits or {})))
        return sweep

    return make


def trials_of(client, job) -> list:
    """Return the trials of a sweep in the order of their numbers, which end their names."""
    found = {trial.name: trial for trial in client.jobs.list(parent_job_name=job.name)}
    return [found[f"{job.name}_{number}"] for number in range(len(found))]


def values_of(client, trial) -> dict[str, str]:
    """Return what a trial was given."""
    return {name: given._data for name, given in client.jobs.get(trial.name).inputs.items()}


def choice(*values):
    from azure.ai.ml.sweep import Choice

    return Choice(list(values))


@pytest.fixture(scope="module")
def swept(client, make_sweep):
    """A sweep over a grid that has ended; the loss is the product of both values."""
    from azure.ai.ml import Output

    text = "python log.py loss $((${{inputs.a}} * ${{inputs.b}})); "
    text += "echo -n ${{inputs.a}}x$AZUREML_SWEEP_b > ${{outputs.made}}/a.txt"
    space = {"a": choice(3, 2), "b": choice(5, 4)}
    return ended(client, make_sweep(text, space, outputs={"made": Output(type="uri_folder")}))


def test_a_grid_has_a_trial_for_each_combination(client, swept):
    trials = trials_of(client, swept)
    values = [list(values_of(client, trial).values()) for trial in trials]
    assert values == [["3", "5"], ["3", "4"], ["2", "5"], ["2", "4"]]
    assert {trial.status for trial in trials} == {"Completed"}


def test_a_sweep_tells_its_best_trial(swept):
    told = [swept.properties[name] for name in ("best_child_run_id", "score")]
    assert (swept.status, told) == ("Completed", [f"{swept.name}_3", "8.0"])


def test_the_outputs_of_a_sweep_are_the_best_trials(client, swept, tmp_path):
    from azure.ai.ml.entities import Model

    client.jobs.download(swept.name, download_path=tmp_path, output_name="made")
    (made,) = tmp_path.rglob("a.txt")
    path = f"azureml://jobs/{swept.name}/outputs/made"
    model = client.models.create_or_update(Model(name="of-a-sweep", path=path, type="custom_model"))
    client.models.download(model.name, model.version, download_path=tmp_path / "model")
    (own,) = (tmp_path / "model").rglob("a.txt")
    assert (made.read_text(), own.read_text()) == ("2x4", "2x4")


def test_the_log_of_a_sweep_and_of_its_best_trial_are_downloaded(client, swept, tmp_path):
    client.jobs.download(swept.name, download_path=tmp_path)
    log = (tmp_path / "hd-artifacts/azureml-logs/hyperdrive.txt").read_text()
    best = (tmp_path / "artifacts/user_logs/std_log.txt").exists()
    assert best and f"The best trial is {swept.name}_3: loss 8.0" in log


def test_trials_are_child_runs_in_mlflow(http, arm, swept):
    path = f"/mlflow/v2.0{arm.workspace}/api/2.0/mlflow/runs/get"
    run = http.get(path, params={"run_id": f"{swept.name}_3"}).json()["run"]
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    metrics = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    assert (tags["mlflow.parentRunId"], metrics) == (swept.name, {"loss": 8.0})


@pytest.mark.parametrize("rule", ["random", "sobol"])
def test_a_seed_draws_the_same_values_of_every_distribution(client, make_sweep, rule):
    from azure.ai.ml import sweep

    space = {
        "choice": choice("x", "y", "z"),
        "randint": sweep.Randint(5),
        "uniform": sweep.Uniform(1, 2),
        "quniform": sweep.QUniform(10, 20, 5),
        "loguniform": sweep.LogUniform(-6, -1),
        "qloguniform": sweep.QLogUniform(0, 3, 2),
        "normal": sweep.Normal(10, 3),
        "qnormal": sweep.QNormal(10, 3, 2),
        "lognormal": sweep.LogNormal(0, 1),
        "qlognormal": sweep.QLogNormal(0, 1, 1),
    }
    found = []
    for _ in range(2):
        algorithm = sweep.RandomSamplingAlgorithm(seed=7, rule=rule)
        limits = {"max_total_trials": 2, "max_concurrent_trials": 2}
        job = ended(client, make_sweep("python log.py loss ${{inputs.normal}}", space, algorithm, limits))
        assert job.status == "Completed"
        found.append([values_of(client, trial) for trial in trials_of(client, job)])
    first = found[0][0]
    drawn = [float(first[name]) for name in ("uniform", "quniform", "loguniform", "randint")]
    fits = [1 <= drawn[0] <= 2, drawn[1] in (10, 15, 20), 0.002 < drawn[2] < 0.37, drawn[3] in range(5)]
    assert found[0] == found[1] and found[0][0] != found[0][1] and all(fits)


POLICIES = {
    "bandit": lambda sweep: sweep.BanditPolicy(slack_factor=0.5, evaluation_interval=1),
    "median": lambda sweep: sweep.MedianStoppingPolicy(evaluation_interval=2, delay_evaluation=3),
    "truncation": lambda sweep: sweep.TruncationSelectionPolicy(truncation_percentage=50),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_trial_that_does_worse_is_stopped_early(client, make_sweep, policy):
    from azure.ai.ml import sweep

    job = make_sweep("python log.py loss ${{inputs.a}}", {"a": choice("1", "10 forever")})
    job.early_termination = POLICIES[policy](sweep)
    job = ended(client, job)
    states = [trial.status for trial in trials_of(client, job)]
    assert (job.status, states) == ("Completed", ["Completed", "Canceled"])


def raw(command: str, *values: str, **more) -> dict:
    """Return the properties of a sweep over a choice, which the SDK would not let through."""
    trial = {"command": command, "environmentId": PLAIN_JOB["environmentId"]}
    return {
        "jobType": "Sweep",
        "trial": trial,
        "computeId": SHORT,
        "searchSpace": {"a": ["choice", [list(values)]]},
        "samplingAlgorithm": {"samplingAlgorithmType": "Grid"},
        "objective": {"goal": "Minimize", "primaryMetric": "loss"},
        **more,
    }


def put(http, arm, name: str, properties: dict):
    """Submit a job, and return its properties when it has ended."""
    path = f"{arm.workspace}/jobs/{name}"
    http.put(path, json={"properties": properties}).raise_for_status()
    while (found := http.get(path).json()["properties"])["status"] not in FINAL:
        time.sleep(0.1)
    return found


def states_of(http, arm, name: str, number: int) -> list[str]:
    paths = [f"{arm.workspace}/jobs/{name}_{each}" for each in range(number)]
    return [http.get(path).json()["properties"]["status"] for path in paths]


def test_a_trial_is_canceled_at_its_timeout_and_the_sweep_goes_on(http, arm, client, code):
    plain = make_command("true", code=code)
    text = "[ ${{search_space.a}} = short ] || sleep 600; python log.py loss 1"
    sweep = raw(text, "long", "short", limits={"trialTimeout": "PT15S"})
    sweep["trial"]["codeId"] = client.jobs.get(ended(client, plain).name).code
    found = put(http, arm, "late-trial", sweep)
    assert (found["status"], found["properties"]["best_child_run_id"]) == ("Completed", "late-trial_1")
    assert states_of(http, arm, "late-trial", 2) == ["Canceled", "Completed"]


def test_a_sweep_is_canceled_at_its_timeout_with_its_trials(http, arm):
    sweep = raw(
        "sleep 600", "x", "y", limits={"timeout": "PT5S", "maxConcurrentTrials": 1, "maxTotalTrials": 2}
    )
    assert put(http, arm, "late-sweep", sweep)["status"] == "Canceled"
    assert states_of(http, arm, "late-sweep", 1) == ["Canceled"]


def test_a_sweep_is_canceled_with_its_trials(client, make_sweep):
    job = client.jobs.create_or_update(make_sweep("sleep 600", {"a": choice(1, 2)}))
    while not list(client.jobs.list(parent_job_name=job.name)):
        time.sleep(0.1)
    client.jobs.begin_cancel(job.name).result()
    states = {trial.status for trial in trials_of(client, job)}
    assert (client.jobs.get(job.name).status, states) == ("Canceled", {"Canceled"})


def test_a_sweep_leaves_a_job_alone_that_has_the_name_of_a_trial(http, arm, client):
    other = client.jobs.create_or_update(make_command("sleep 600", name="taken_0"))
    assert put(http, arm, "taken", raw("true", "x", limits={"timeout": "PT1S"}))["status"] == "Failed"
    assert client.jobs.get(other.name).status not in ("Canceled", "Failed")
    client.jobs.begin_cancel(other.name).result()


def test_a_trial_that_fails_is_not_the_best(client, make_sweep):
    text = "python log.py loss ${{inputs.a}}; exit ${{inputs.a}}"
    job = ended(client, make_sweep(text, {"a": choice(0, 3)}, goal="maximize"))
    states = [trial.status for trial in trials_of(client, job)]
    assert (job.status, states) == ("Completed", ["Completed", "Failed"])
    assert job.properties["best_child_run_id"] == f"{job.name}_0"


def test_a_sweep_fails_whose_trials_all_fail(client, make_sweep):
    words = reason(client, make_sweep("exit 3", {"a": choice(1, 2)}))
    assert "no trial has completed: the command ended with exit status 3" in words


def test_a_sweep_without_its_metric_fails_with_the_names_that_were_logged(client, make_sweep):
    words = reason(client, make_sweep("python log.py accuracy 1", {"a": choice(1)}))
    assert "no completed trial logged the metric 'loss'; they logged: accuracy" in words


@pytest.mark.skipif(os.cpu_count() < 2, reason="trials share one processor one after another")
def test_trials_run_side_by_side(client, make_sweep, tmp_path):
    text = f"cd {tmp_path}; touch ${{{{inputs.a}}}}; until [ -e x -a -e y ]; do sleep 0.1; done; cd -"
    job = make_sweep(f"{text}; python log.py loss 1", {"a": choice("x", "y")})
    assert ended(client, job).status == "Completed"


def test_no_more_trials_run_side_by_side_than_asked(client, make_sweep, tmp_path):
    text = f"mkdir {tmp_path}/alone && python log.py loss 1 && rmdir {tmp_path}/alone"
    limits = {"max_total_trials": 3, "max_concurrent_trials": 1}
    job = ended(client, make_sweep(text, {"a": choice(1, 2, 3)}, limits=limits))
    assert [trial.status for trial in trials_of(client, job)] == ["Completed"] * 3


def test_no_more_trials_run_side_by_side_than_the_cluster_has_nodes(client, make_sweep, tmp_path):
    from azure.ai.ml.entities import AmlCompute

    wanted = AmlCompute(name="one-node", size="Standard_DS3_v2", max_instances=1)
    job = make_sweep("python log.py loss 1", {"a": choice(1, 2)})
    job.compute = client.compute.begin_create_or_update(wanted).result().name
    client.jobs.download(ended(client, job).name, download_path=tmp_path)
    log = (tmp_path / "hd-artifacts/azureml-logs/hyperdrive.txt").read_text()
    assert "2 trials, at most 1 side by side" in log


def test_a_node_of_a_pipeline_sweeps_and_hands_on_the_best_trials_outputs(client, code, tmp_path):
    from azure.ai.ml import Input, Output, dsl
    from azure.ai.ml.sweep import BanditPolicy, Choice, Uniform

    work = make_command(
        "python log.py loss ${{inputs.a}}; echo -n ${{inputs.word}}${{inputs.a}} > ${{outputs.made}}/a.txt",
        code=code,
        inputs={"a": Input(type="integer"), "b": Input(type="number"), "word": Input(type="string")},
        outputs={"made": Output(type="uri_folder")},
    )
    read = make_command("cat ${{inputs.given}}/a.txt", inputs={"given": Input(type="uri_folder")})

    @dsl.pipeline(compute=SHORT)
    def both(word: str):
        tried = work(a=Choice([7, 3, 5]), b=Uniform(0, 1), word=word).sweep(
            primary_metric="loss", goal="minimize", sampling_algorithm="random", compute=SHORT
        )
        tried.set_limits(max_total_trials=3, max_concurrent_trials=2, timeout=600)
        tried.early_termination = BanditPolicy(slack_amount=100, evaluation_interval=1)
        told = read(given=tried.outputs.made)  # noqa: F841
        return {"kept": tried.outputs.made}

    job = ended(client, both(word="ab"))
    nodes = {
        node.display_name: client.jobs.get(node.name) for node in client.jobs.list(parent_job_name=job.name)
    }
    assert (job.status, nodes["tried"].status) == ("Completed", "Completed")
    drawn = [int(values_of(client, trial)["a"]) for trial in trials_of(client, nodes["tried"])]
    client.jobs.download(job.name, download_path=tmp_path / "kept", output_name="kept")
    (made,) = (tmp_path / "kept").rglob("a.txt")
    said = log_of(client, nodes["told"], tmp_path / "log")
    assert (len(drawn), made.read_text()) == (3, f"ab{min(drawn)}") and said.endswith(made.read_text())


def refused(client, job) -> tuple[int, str]:
    from azure.core.exceptions import HttpResponseError

    with pytest.raises(HttpResponseError) as raised:
        client.jobs.create_or_update(job)
    return raised.value.status_code, raised.value.message


def test_bayesian_sampling_is_refused_by_name(client, make_sweep):
    status, words = refused(client, make_sweep("true", {"a": choice(1)}, "bayesian"))
    assert status == 501 and "Bayesian sampling is not part of the emulator" in words


def test_a_grid_over_a_continuous_distribution_is_refused(client, make_sweep):
    from azure.ai.ml.sweep import Uniform

    status, words = refused(client, make_sweep("true", {"a": Uniform(0, 1)}))
    assert status == 400 and "a: grid sampling takes choices only, not uniform" in words


def test_a_bandit_without_slack_is_refused(client, make_sweep):
    from azure.ai.ml.sweep import BanditPolicy

    job = make_sweep("true", {"a": choice(1)})
    job.early_termination = BanditPolicy()
    status, words = refused(client, job)
    assert status == 400 and "either slack_factor or slack_amount" in words


def test_a_random_sweep_without_a_number_of_trials_is_refused(client, make_sweep):
    status, words = refused(
        client, make_sweep("true", {"a": choice(1)}, "random", {"max_total_trials": None})
    )
    assert status == 501 and "Azure would run 1000 trials; name a number" in words


def test_a_node_that_cannot_be_swept_so_is_refused_before_the_pipeline_runs(client):
    from azure.ai.ml import dsl
    from azure.ai.ml.sweep import Choice

    tried = make_command("echo ${{inputs.rate}}", inputs={"rate": 1})

    @dsl.pipeline(compute=SHORT)
    def swept():
        sweep = tried(rate=Choice([1, 2])).sweep(
            primary_metric="loss", goal="minimize", sampling_algorithm="bayesian", compute=SHORT
        )
        sweep.set_limits(max_total_trials=2)

    assert refused(client, swept())[0] == 501


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        (
            {"limits": {"maxTotalTrials": 2, "maxConcurrentTrials": 3}},
            400,
            "is more than max_total_trials, 2",
        ),
        ({"limits": {"maxTotalTrials": 1001}}, 400, "limits.maxTotalTrials"),
        ({"objective": {"goal": "Shrink", "primaryMetric": "loss"}}, 400, "objective.goal"),
        ({"searchSpace": {}}, 400, "needs a search space"),
        ({"searchSpace": {"a": ["beta", [1]]}}, 400, "a: there is no distribution 'beta'; there is: choice"),
        ({"searchSpace": {"a": ["choice", [[{"deep": 1}]]]}}, 501, "a choice between lists or objects"),
        ({"searchSpace": {"b": ["choice", [[1]]]}}, 400, "the command names 'a'"),
        ({"inputs": {"a": {"jobInputType": "literal", "value": "1"}}}, 400, "a is an input of the sweep"),
        (
            {"earlyTermination": {"policyType": "TruncationSelection"}},
            400,
            "truncation_percentage from 1 to 99",
        ),
        ({"samplingAlgorithm": {"samplingAlgorithmType": "Random", "logbase": 10}}, 501, "logbase 10"),
        ({"computeId": "nowhere"}, 400, "Unknown compute target 'nowhere'"),
        ({"trial": {"command": "true", "environmentId": "ghost"}}, 400, "is not the id of an environment"),
    ],
)
def test_a_sweep_that_cannot_run_is_refused_before_it_does(http, arm, more, status, words):
    sweep = raw("echo ${{search_space.a}}", "x", **more)
    answer = http.put(f"{arm.workspace}/jobs/never", json={"properties": sweep})
    assert (answer.status_code, words in answer.json()["error"]["message"]) == (status, True), answer.text
    assert http.get(f"{arm.workspace}/jobs/never").status_code == 404
