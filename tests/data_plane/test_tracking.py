"""MLflow behind the workspace's tracking address: azureml-mlflow's plugin, and MLflow's own page."""

import gzip
import re
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from clients import ended, make_command
from conftest import PLAIN_JOB, raw_client

from local_azureml.data_plane import browser_sessions, tracking
from local_azureml.identifiers import SUBSCRIPTION
from scenarios.notebook_runs import ROOT


@pytest.fixture(scope="module")
def mlflow(client):
    """MLflow, pointed at the workspace the way the SDK's users do it."""
    import mlflow

    workspace = client.workspaces.get(client.workspace_name)
    mlflow.set_tracking_uri(workspace.mlflow_tracking_uri)
    return mlflow


@pytest.fixture(scope="module")
def run(mlflow):
    """A run with a parameter, a tag and a metric of three steps."""
    mlflow.set_experiment("by-hand")
    with mlflow.start_run(run_name="first") as started:
        mlflow.log_param("epochs", 3)
        mlflow.set_tag("colour", "blue")
        for step, loss in enumerate([3.0, 2.0, 1.0]):
            mlflow.log_metric("loss", loss, step=step)
    return started.info


def test_a_run_comes_back_with_what_was_logged(mlflow, run):
    assert mlflow.get_tracking_uri().startswith("azureml://localhost:")
    data = mlflow.get_run(run.run_id).data
    assert (data.params, data.tags["colour"], data.metrics) == ({"epochs": "3"}, "blue", {"loss": 1.0})
    history = mlflow.MlflowClient().get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert mlflow.search_runs(experiment_names=["by-hand"])["run_id"].tolist() == [run.run_id]


def test_a_body_that_is_nested_deeply_or_packed_is_refused(http):
    create = f"{tracking.PREFIX}/api/2.0/mlflow/runs/create"
    kind = {"Content-Type": "application/json"}
    deep = http.post(create, content="[" * 100_000, headers=kind)
    packed = http.post(create, content=gzip.compress(b"{}"), headers=kind | {"Content-Encoding": "gzip"})
    assert (deep.status_code, packed.status_code) == (400, 415)


def test_a_job_for_which_the_disk_has_no_room_is_refused_with_a_sentence(emulator_with, arm):
    """MLflow's file may not grow, as on a full disk."""
    from sqlalchemy import event

    server = emulator_with()
    with raw_client(server.context.environment()) as opened:
        engine = server.context.runs.load()[1].engine
        event.listen(engine, "checkout", lambda of_sqlite, *_: of_sqlite.execute("PRAGMA max_page_count=1"))
        tags = {f"tag{number}": "x" * 200 for number in range(200)}
        body = {"properties": PLAIN_JOB | {"command": "true", "tags": tags}}
        told = opened.put(f"{arm.workspace}/jobs/no-room", json=body)
    assert (told.status_code, "No space left on device" in told.text) == (507, True)


@pytest.fixture(scope="module")
def job(client):
    return ended(client, make_command("true"))


@pytest.fixture
def browser(environment):
    """A client with no token, which keeps its cookies to itself."""
    with raw_client(environment, token=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def prefix(arm) -> str:
    return f"/mlflow/v2.0{arm.workspace}"


@pytest.fixture
def visitor(browser, client, job):
    """A browser that has opened the link of a job."""
    browser.get(client.jobs.get(job.name).studio_url)
    return browser


def test_the_studio_link_of_a_job_leads_to_mlflows_page(browser, client, job):
    answer = browser.get(client.jobs.get(job.name).studio_url, follow_redirects=True)
    assert "<title>MLflow</title>" in answer.text
    assert answer.url.fragment.endswith(f"/runs/{job.name}/model-metrics")
    assert SUBSCRIPTION not in job.studio_url


def test_a_link_lets_one_browser_in_as_often_as_it_wants(environment, browser, client, job):
    link = client.jobs.get(job.name).studio_url
    assert [browser.get(link).status_code for _ in range(3)] == [307, 307, 307]
    with raw_client(environment, token=False) as another:
        refused = another.get(link)
    assert refused.status_code == 401 and "read the job again" in refused.json()["error"]["message"]


def test_a_job_that_is_read_again_has_a_fresh_link(environment, browser, client, job):
    links = []
    for _ in range(2):
        links.append(client.jobs.get(job.name).studio_url)
        with raw_client(environment, token=False) as another:
            assert another.get(links[-1]).status_code == 307
    assert links[0] != links[1]


def test_many_browsers_at_once_get_one_cookie_for_one_link(environment, client, job):
    link = client.jobs.get(job.name).studio_url

    def opens(_) -> int:
        with raw_client(environment, token=False) as another:
            return another.get(link).status_code

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(opens, range(8))) == [307, *[401] * 7]


@pytest.mark.parametrize("query", ["", "?ticket=", "?ticket=guess", "?wsid=local"])
def test_nobody_learns_of_a_job_without_its_ticket(browser, job, query):
    answers = [browser.get(f"/runs/{name}{query}") for name in (job.name, "nobodys")]
    assert [answer.status_code for answer in answers] == [401, 401]
    assert answers[0].text == answers[1].text and not browser.cookies


def test_a_cookie_is_for_the_page_alone(browser, client, job):
    """It goes to no script, over no plain connection, along with no request of another site, and not far."""
    answer = browser.get(client.jobs.get(job.name).studio_url)
    cookies = answer.headers.get_list("set-cookie")
    wanted = {"httponly", "secure", "samesite=lax", f"max-age={browser_sessions.LIFETIME}"}
    assert all(wanted <= {part.strip().lower() for part in cookie.split(";")} for cookie in cookies)
    assert {re.search("Path=([^;]*)", cookie)[1] for cookie in cookies} == {"/runs", tracking.PREFIX}


def test_a_cookie_is_no_token(visitor, anonymous, arm):
    token = visitor.cookies.get(browser_sessions.COOKIE, path="/runs")
    answer = anonymous.get(arm.workspace, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 401


@pytest.mark.parametrize("expires", ["1", "99999999999", "", "x"])
def test_a_cookie_cannot_be_made_up(anonymous, prefix, visitor, expires):
    _, _, signed = visitor.cookies.get(browser_sessions.COOKIE, path="/runs").partition(".")
    headers = {"Cookie": f"{browser_sessions.COOKIE}={expires}.{signed}"}
    assert anonymous.get(f"{prefix}/", headers=headers).status_code == 401


PAGES = ["", "/", "/version", "/static-files/x.js", "/get-artifact?run_uuid=x&path=y", "/health"]
PAGES += ["/ajax-api/2.0/mlflow/runs/get", "//api/2.0/mlflow/experiments/list", "/./api/2.0/mlflow/runs/get"]
PAGES += ["/x/../version", "//version"]


@pytest.mark.parametrize("path", PAGES)
def test_mlflow_is_closed_to_those_without_token_and_cookie(anonymous, prefix, path):
    # httpx would write the path out itself
    address = httpx.URL(anonymous.base_url).copy_with(raw_path=f"{prefix}{path}".encode())
    told = {anonymous.request(method, address).status_code for method in ("GET", "HEAD", "POST", "OPTIONS")}
    assert told <= {400, 401, 501}


@pytest.mark.parametrize("origin", ["http://localhost:9999", "https://localhost:9999", "https://example.com"])
def test_no_page_of_another_origin_is_let_in(visitor, http, prefix, origin):
    """A browser sends its cookies with requests of pages at other ports of this machine, and says so."""
    search = f"{prefix}/ajax-api/2.0/mlflow/experiments/search?max_results=5"
    assert visitor.get(search).status_code == 200
    site = "cross-site" if "example" in origin else "same-site"
    headers = {"Origin": origin, "Sec-Fetch-Site": site, "Sec-Fetch-Mode": "cors"}
    assert visitor.get(search, headers=headers).status_code == 401
    for client in (visitor, http):
        allowed = [
            client.get(search, headers={"Origin": origin}),
            client.options(search, headers={"Origin": origin}),
        ]
        assert not [
            name for answer in allowed for name in answer.headers if name.startswith("access-control")
        ]


QUERY = """query GetRun($data: MlflowGetRunInput!)
    { mlflowGetRun(input: $data) { run { data { metrics { key } } } } }"""


def test_the_page_of_a_run_reads_its_metrics_with_its_cookie(visitor, prefix, run):
    asked = {"operationName": "GetRun", "query": QUERY, "variables": {"data": {"runId": run.run_id}}}
    answer = visitor.post(f"{prefix}/graphql", json=asked)
    metrics = answer.json()["data"]["mlflowGetRun"]["run"]["data"]["metrics"]
    assert [metric["key"] for metric in metrics] == ["loss"]


def test_a_query_of_the_page_is_short(visitor, prefix):
    aliases = " ".join(f"a{number}: __typename" for number in range(100_000))
    answer = visitor.post(f"{prefix}/graphql", json={"query": f"{{ {aliases} }}"})
    assert answer.status_code == 413


def test_a_query_that_just_fits_is_answered(visitor, prefix):
    aliases = " ".join(f"a{number}: __typename" for number in range(3_500))
    assert visitor.post(f"{prefix}/graphql", json={"query": f"{{ {aliases} }}"}).status_code in (200, 400)


@pytest.mark.parametrize(
    "path",
    ["api/2.0/mlflow/runs/search", "ajax-api/2.0/mlflow/runs/create", "ajax-api/2.0/mlflow/runs/delete"],
)
def test_nothing_is_written_without_a_token(visitor, prefix, path):
    assert visitor.post(f"{prefix}/{path}", json={}).status_code == 401


def test_a_job_right_after_the_start_meets_no_half_imported_mlflow(tmp_path):
    """The loading of MLflow has just begun when the first job asks."""
    early = """
        import sys, threading
        from pathlib import Path
        from local_azureml.identifiers import SMALL_MODEL
        from local_azureml.context import Context
        from local_azureml.data_plane.tracking import Tracking

        runs = Tracking(Context(Path(sys.argv[1]), 1, SMALL_MODEL))
        loading = threading.Thread(target=runs.load)
        loading.start()
        while "mlflow" not in sys.modules:
            pass
        print(runs.has_run("x"))
        loading.join()
    """
    command = [sys.executable, "-c", textwrap.dedent(early), tmp_path]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (ended.stdout, "Traceback" in ended.stderr) == ("False\n", False)


@pytest.mark.parametrize("scheme", ["file://{}", "{}", "http://localhost:1", "s3://bucket"])
def test_artifacts_lie_in_mlflows_own_place_only(http, prefix, tmp_path, scheme):
    api = f"{prefix}/api/2.0/mlflow"
    body = {"name": f"elsewhere-{time.time_ns()}", "artifact_location": scheme.format(tmp_path)}
    answer = http.post(f"{api}/experiments/create", json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")


def test_a_model_version_leads_to_no_file_outside(http, visitor, prefix, tmp_path):
    (tmp_path / "canary").write_text("alive")
    api = f"{prefix}/api/2.0/mlflow"
    http.post(f"{api}/registered-models/create", json={"name": "curious"})
    body = {"name": "curious", "source": tmp_path.as_uri()}
    version = (
        http.post(f"{api}/model-versions/create", json=body).json().get("model_version", {}).get("version", 1)
    )
    answer = visitor.get(f"{prefix}/model-versions/get-artifact?name=curious&version={version}&path=canary")
    assert not answer.is_success and "alive" not in answer.text


def test_the_page_reads_no_model_that_lies_elsewhere(http, visitor, arm, prefix, tmp_path):
    (tmp_path / "canary.txt").write_text("sings")
    asked = {"properties": {"modelUri": tmp_path.as_uri(), "modelType": "custom_model"}}
    assert http.put(f"{arm.workspace}/models/outside/versions/1", json=asked).status_code == 201
    named = {"name": "outside", "version": "1", "path": "canary.txt"}
    answer = visitor.get(f"{prefix}/model-versions/get-artifact", params=named)
    assert answer.status_code == 400 and "sings" not in answer.text
