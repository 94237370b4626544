"""Deployments of one's own: any MLflow model, and scoring scripts."""

import json
import os
import shutil
import ssl
import textwrap
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import httpx
import jwt
import pytest
from conftest import token_of

SIZE = "Standard_DS3_v2"
SCORE = """
import importlib.util, json, os, pathlib

def init():
    global factor
    assert importlib.util.find_spec("journal") is None  # a file beside the server
    print("starting")
    factor = int(pathlib.Path(os.environ["AZUREML_MODEL_DIR"], "weights/factor.txt").read_text())

def run(raw_data):
    print("asked", raw_data)
    return [value * factor + int(os.environ["PLUS"]) for value in json.loads(raw_data)["data"]]
"""


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """An MLflow folder of a linear model of two named columns: 1 + 2 a + 3 b."""
    import mlflow.sklearn
    import pandas
    from sklearn.linear_model import LinearRegression

    table = pandas.DataFrame({"a": [0.0, 1.0, 0.0, 1.0], "b": [0.0, 0.0, 1.0, 1.0]})
    model = LinearRegression().fit(table, 1 + 2 * table["a"] + 3 * table["b"])
    folder = tmp_path_factory.mktemp("linear") / "model"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        signature = mlflow.models.infer_signature(table, model.predict(table))
        mlflow.sklearn.save_model(
            model, folder, signature=signature, pip_requirements=["scikit-learn", "mlflow"]
        )
    return folder


@pytest.fixture(scope="module")
def place(client):
    """A function that makes an endpoint with one deployment and returns the deployment."""
    from azure.ai.ml.entities import ManagedOnlineDeployment, ManagedOnlineEndpoint

    made = []

    def make(name: str, auth_mode: str = "key", **options):
        endpoint = ManagedOnlineEndpoint(name=name, auth_mode=auth_mode)
        client.online_endpoints.begin_create_or_update(endpoint).result()
        made.append(name)
        asked = ManagedOnlineDeployment(
            name="blue", endpoint_name=name, instance_type=SIZE, instance_count=1, **options
        )
        return client.online_deployments.begin_create_or_update(asked).result()

    yield make
    for name in made:
        client.online_endpoints.begin_delete(name).result()


def ask(client, tmp_path, endpoint: str, request) -> object:
    """Return what an endpoint's deployment answers to a request."""
    file = tmp_path / "request.json"
    file.write_text(request if isinstance(request, str) else json.dumps(request))
    said = client.online_endpoints.invoke(endpoint, deployment_name="blue", request_file=str(file))
    return json.loads(said)


BLUE = {"azureml-model-deployment": "blue"}


def post(
    client, endpoint: str, request, token: str | None = None, headers: dict = BLUE, **more
) -> httpx.Response:
    """Return what the endpoint itself says: the SDK reads no answers of 424 and 408."""
    token = client.online_endpoints.get_keys(endpoint).primary_key if token is None else token
    headers = {"Authorization": f"Bearer {token}", **headers}
    verify = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
    address = client.online_endpoints.get(endpoint).scoring_uri
    return httpx.post(address, json=request, headers=headers, verify=verify, **more)


def a_model(path, kind: str = "mlflow_model"):
    from azure.ai.ml.entities import Model

    return Model(path=str(path), type=kind)


@pytest.fixture(scope="module")
def regression(place, linear, tmp_path_factory):
    folder = shutil.copytree(linear, tmp_path_factory.mktemp("regression") / "model")
    (folder / "config.json").write_text('["a", "b"]')
    return place("own-linear", model=a_model(folder)).endpoint_name


def test_any_mlflow_model_answers_a_table_whatever_its_own_config_json_holds(client, regression, tmp_path):
    table = {"columns": ["b", "a"], "index": [0, 1], "data": [[1.0, 0.0], [0.0, 1.0]]}
    answer = ask(client, tmp_path, regression, {"input_data": table})
    assert [round(value, 6) for value in answer] == [4.0, 3.0]


def test_a_model_with_a_conda_file_alone_gets_the_environment_that_it_names(client, linear, place, tmp_path):
    from azure.ai.ml.entities import Model
    from azure.core.exceptions import HttpResponseError

    shutil.copytree(linear, tmp_path / "old")
    (tmp_path / "old/requirements.txt").unlink()
    (tmp_path / "old/conda.yaml").write_text("dependencies: [python, {pip: [no-such-thing==3]}]")
    model = Model(name="old", path=tmp_path / "old", type="mlflow_model")
    with pytest.raises(HttpResponseError):
        place("old-model", model=model)
    assert "no-such-thing==3" in client.online_deployments.get_logs("blue", "old-model", lines=50)


@pytest.mark.parametrize(
    ("request_body", "words"),
    [
        ("[1]", "input_data"),
        ('{"data": [1]}', "input_data"),
        ({"input_data": {"columns": ["a"], "data": [[1.0]]}}, "missing"),
        ({"input_data": {"columns": ["a", "b"], "data": [[1.0]]}}, "no table"),
    ],
)
def test_a_request_that_the_model_does_not_take_is_the_callers_fault(
    client, regression, tmp_path, request_body, words
):
    from azure.core.exceptions import HttpResponseError

    with pytest.raises(HttpResponseError) as raised:
        ask(client, tmp_path, regression, request_body)
    assert raised.value.status_code == 400 and words in raised.value.response.text()


def script_of(folder, text: str, **options) -> dict:
    """Return what a deployment asks for that has a script of this text, a model and a variable."""
    from azure.ai.ml.entities import CodeConfiguration, Environment

    (folder / "code").mkdir()
    (folder / "code/score.py").write_text(text)
    (folder / "weights").mkdir()
    (folder / "weights/factor.txt").write_text("3")
    return {
        "model": a_model(folder / "weights", "custom_model"),
        "code_configuration": CodeConfiguration(code=str(folder / "code"), scoring_script="score.py"),
        "environment": Environment(name="scoring", image="ubuntu"),
        "environment_variables": {"PLUS": "1"},
        **options,
    }


@pytest.fixture(scope="module")
def scripted(place, tmp_path_factory):
    """An endpoint of a script, with a description of it beside it."""
    folder = tmp_path_factory.mktemp("scripted")
    asked = script_of(folder, SCORE)
    for version in (2, 3):
        (folder / f"code/swagger{version}.json").write_text(json.dumps({"info": {"title": version}}))
    return place("own-script", **asked).endpoint_name


def test_a_scoring_script_answers_with_its_model_and_variables(client, scripted, tmp_path):
    assert ask(client, tmp_path, scripted, {"data": [1, 2]}) == [4, 7]
    assert "starting" in client.online_deployments.get_logs("blue", scripted, lines=50)


def test_a_script_finds_the_mlflow_model_of_its_deployment_and_may_write_beside_it(
    client, place, linear, tmp_path
):
    text = """
        import os, pathlib

        def init():
            global found
            model = pathlib.Path(os.environ["AZUREML_MODEL_DIR"], "model/MLmodel")
            found = model.read_text()
            model.write_text("")

        def run(raw_data):
            return "mlflow.sklearn" in found
    """
    asked = script_of(tmp_path, textwrap.dedent(text), model=a_model(linear))
    name = place("own-both", **asked).endpoint_name
    assert ask(client, tmp_path, name, {}) is True
    assert (linear / "MLmodel").read_text()


def described(client, anonymous, endpoint: str, query: str = "") -> httpx.Response:
    """Return what an endpoint says of itself, as SDK and Azure's portal ask for it."""
    token = client.online_endpoints.get_keys(endpoint).primary_key
    headers = {"Authorization": f"Bearer {token}", **BLUE}
    return anonymous.get(client.online_endpoints.get(endpoint).openapi_uri + query, headers=headers)


def test_an_mlflow_model_tells_by_name_that_it_has_no_description(client, regression, anonymous):
    told = described(client, anonymous, regression)
    assert told.status_code == 501 and "OpenAPI description" in told.text
    assert anonymous.get(client.online_endpoints.get(regression).openapi_uri).status_code == 401


SCHEMAS = """
def is_schema_decorated(run): return hasattr(run, "schemas")
def get_input_schema(run): return run.schemas[0]
def get_output_schema(run): return run.schemas[1]
"""
DECORATED = """
def init(): pass
def run(data): return data
run.schemas = ({"title": "given"}, {"title": "made"})
"""


def test_a_script_is_described_by_its_decorators(client, place, anonymous, tmp_path):
    asked = script_of(tmp_path, DECORATED)
    (tmp_path / "code/inference_schema").mkdir()  # in place of the package, what the server asks of it
    (tmp_path / "code/inference_schema/schema_util.py").write_text(SCHEMAS)
    place("own-described", **asked)
    told = described(client, anonymous, "own-described", "?version=2").json()
    definitions = {"ServiceInput": {"title": "given"}, "ServiceOutput": {"title": "made"}}
    assert (told["definitions"], [*told["paths"]]) == (definitions, ["/score"])
    assert described(client, anonymous, "own-described", "?version=3").status_code == 501


@pytest.mark.parametrize(("asked", "version"), [("", 2), ("?version=2.0", 2), ("?version=3", 3)])
def test_a_script_is_described_by_a_file_beside_it(client, scripted, anonymous, asked, version):
    assert described(client, anonymous, scripted, asked).json()["info"] == {"title": version}


RAW = """
from azureml.contrib.services.aml_request import AMLRequest, rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse

def init(): pass

@rawhttp
def run(request: AMLRequest):
    if request.method != "POST" or "image" not in request.files:
        return AMLResponse("no image", 400)
    image = request.files["image"].read() * int(request.args["times"])
    return AMLResponse(image, 200, {"Content-Type": "image/x", "X-Name": request.headers["X-Name"]})
"""


def test_a_script_may_take_requests_and_answer_as_they_come(client, place, tmp_path):
    """With either of the packages that Azure's servers have had for it."""
    place("own-raw", **script_of(tmp_path, RAW))
    sent = {
        "files": {"image": b"\xff\x00"},
        "params": {"times": "2"},
        "headers": {**BLUE, "X-Name": "Zoë".encode("latin-1")},
    }
    answer = post(client, "own-raw", None, **sent)
    headers = [answer.headers[name] for name in ("content-type", "x-name", "azureml-model-deployment")]
    assert (answer.status_code, answer.content, headers) == (200, b"\xff\0" * 2, ["image/x", "Zoë", "blue"])
    refused = post(client, "own-raw", {})
    told = (refused.status_code, refused.headers["ms-azureml-model-error-statuscode"], refused.text)
    assert told == (424, "400", "no image")


def test_a_script_that_raises_on_a_request_is_the_models_fault(client, scripted):
    assert post(client, scripted, {"data": [None]}).status_code == 424
    assert "TypeError" in client.online_deployments.get_logs("blue", scripted, lines=50)


def test_a_script_that_raises_in_init_fails_the_deployment_with_its_traceback_in_the_log(
    client, place, tmp_path
):
    text = "def init():\n    raise ValueError('no weights today')\n\ndef run(data):\n    return data\n"
    with pytest.raises(Exception, match="ended; its log says why"):
        place("own-failing", **script_of(tmp_path, text))
    log = client.online_deployments.get_logs("blue", "own-failing", lines=50)
    assert "Traceback" in log and "ValueError: no weights today" in log
    assert client.online_deployments.get("blue", "own-failing").provisioning_state == "Failed"


@pytest.mark.parametrize("script", ["other.py", __file__])
def test_a_script_that_is_not_in_the_code_is_refused(http, arm, scripted, script):
    path = f"{arm.workspace}/onlineEndpoints/{scripted}/deployments"
    asked = http.get(f"{path}/blue").json()
    asked["properties"]["codeConfiguration"]["scoringScript"] = script
    answer = http.put(f"{path}/green", json=asked)
    words = f"there is no scoring script {script!r} in the code of the deployment"
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, words)


ROUTES = {f"{name}_route": {"port": 8501, "path": "/"} for name in ("liveness", "readiness", "scoring")}


@pytest.mark.parametrize(
    ("kind", "image", "status", "message"),
    [
        ("custom_model", {"inference_config": ROUTES}, 501, "a deployment of a custom container"),
        ("mlflow_model", {}, 501, "a deployment of a custom container"),
        ("triton_model", None, 501, "a model of the type triton_model"),
        ("custom_model", None, 400, "a model of the type custom_model needs a scoring script"),
    ],
)
def test_a_deployment_with_a_server_of_its_own_is_refused_by_name(
    place, tmp_path, kind, image, status, message
):
    from azure.ai.ml.entities import Environment
    from azure.core.exceptions import HttpResponseError

    (tmp_path / "weights").write_text(tmp_path.name)  # contents of its own, by which the SDK names it
    asked = {"model": a_model(tmp_path, kind)}
    if image is not None:
        asked["environment"] = Environment(name="served", version="1", image="serving", **image)
    with pytest.raises(HttpResponseError, match=message) as raised:
        place("own-image", **asked)
    assert raised.value.status_code == status


def test_a_share_of_the_traffic_is_mirrored_to_a_deployment_whose_answers_nobody_gets(
    client, scripted, http, arm
):
    path = f"{arm.workspace}/onlineEndpoints/{scripted}"
    asked = http.get(f"{path}/deployments/blue").json()
    http.put(f"{path}/deployments/green", json=asked)
    shares = {"location": "eastus", "properties": {"traffic": {"blue": 100}, "mirrorTraffic": {"green": 50}}}
    assert http.put(path, json=shares).status_code == 200

    def mirrored() -> str:
        return client.online_deployments.get_logs("green", scripted, lines=50)

    until = time.monotonic() + 30
    while 'asked {"data":[1]}' not in mirrored() and time.monotonic() < until:
        time.sleep(0.1)
        answer = post(client, scripted, {"data": [1]}, headers={})
        assert answer.headers["azureml-model-deployment"] == "blue"
    assert time.monotonic() < until


def test_a_deployment_on_kubernetes_is_refused_by_name(http, arm, scripted):
    path = f"{arm.workspace}/onlineEndpoints/{scripted}/deployments"
    asked = http.get(f"{path}/blue").json()
    asked["properties"]["endpointComputeType"] = "Kubernetes"
    answer = http.put(f"{path}/green", json=asked)
    words = "the endpointComputeType Kubernetes of a deployment is not part of the emulator"
    assert (answer.status_code, answer.json()["error"]["message"]) == (501, words)


def test_an_endpoint_that_takes_tokens_answers_to_one_and_gives_no_keys(
    client, place, http, arm, tmp_path, environment
):
    place("own-token", "aad_token", **script_of(tmp_path, SCORE))
    path = f"{arm.workspace}/onlineEndpoints/own-token"
    for mode in ("aad_token", "aml_token"):
        http.patch(path, json={"properties": {"authMode": mode.replace("_", "")}}).raise_for_status()
        token = client.online_endpoints.get_keys("own-token").access_token
        assert client.online_endpoints.get("own-token").auth_mode == mode
        given = (token, token_of(environment), "x")
        statuses = [post(client, "own-token", {"data": [0]}, each).status_code for each in given]
        assert statuses == [200, 200, 401]
    answer = http.post(f"{path}/listKeys")
    assert (answer.status_code, "takes no keys" in answer.json()["error"]["message"]) == (400, True)


def test_the_token_of_an_endpoint_opens_nothing_else(http, anonymous, arm):
    path = f"{arm.workspace}/onlineEndpoints/own-opening"
    http.put(path, json={"location": "eastus", "properties": {"authMode": "AMLToken"}})
    token = http.post(f"{path}/token").json()["accessToken"]
    answer = anonymous.get(f"{arm.workspace}/jobs", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 401


def test_who_had_the_key_of_an_endpoint_makes_no_tokens_of_it(client, http, arm):
    path = f"{arm.workspace}/onlineEndpoints/own-changed"
    http.put(path, json={"location": "eastus", "properties": {"authMode": "Key"}})
    key = http.post(f"{path}/listKeys").json()["primaryKey"]
    http.patch(path, json={"properties": {"authMode": "AMLToken"}})
    made = jwt.encode({"exp": time.time() + 60}, key, algorithm="HS256")
    assert post(client, "own-changed", {}, made).status_code == 401


def test_a_slow_script_is_answered_with_408_and_leaves_no_process_behind(client, place, tmp_path, emulator):
    import psutil
    from azure.ai.ml.entities import OnlineRequestSettings

    text = "import time\ndef init(): pass\ndef run(data):\n    time.sleep(600)\n"
    settings = OnlineRequestSettings(request_timeout_ms=200)
    place("own-ending", **script_of(tmp_path, text, request_settings=settings))
    assert post(client, "own-ending", {}).status_code == 408

    def servers() -> list[int]:
        """Return the processes that were given the file of that deployment's server."""
        found = [(p.pid, " ".join(p.info["cmdline"] or [])) for p in psutil.process_iter(["cmdline"])]
        return [pid for pid, line in found if f"{emulator.folder}/deployments/own-ending" in line]

    before = servers()
    client.online_endpoints.begin_delete("own-ending").result()
    until = time.monotonic() + 10
    while servers() and time.monotonic() < until:
        time.sleep(0.05)
    assert before and not servers()


def test_a_request_is_answered_whose_endpoint_is_deleted_meanwhile(client, place, tmp_path):
    from azure.ai.ml.entities import OnlineRequestSettings

    begun = tmp_path / "begun"
    text = f"import time\ndef init(): pass\ndef run(data): open({str(begun)!r}, 'w'); time.sleep(60)"
    longer = OnlineRequestSettings(request_timeout_ms=90_000)
    place("own-cut-off", **script_of(tmp_path, text, request_settings=longer))
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(post, client, "own-cut-off", {}, timeout=90)
        until = time.monotonic() + 30
        while not begun.exists() and time.monotonic() < until:
            time.sleep(0.05)
        client.online_endpoints.begin_delete("own-cut-off").result()
        assert answer.result().status_code == 424
