"""A model's template that does not end, behind an endpoint."""

import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from clients import deployment, endpoint

from local_azureml import identifiers

TIMEOUT = 8  # seconds
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
TEMPLATE = (
    f"{{% if 'for ever' in messages[0].content %}}{LOOP * 99}{{% endif %}}"
    "{% if 'a lot' in messages[0].content %}{{ 'x' * 10 ** 9 }}{% endif %}What is one plus one?"
)


@pytest.fixture(scope="module")
def ask(client, anonymous, tmp_path_factory):
    """A function that asks a deployment of a model whose template does not end for some conversations."""
    from azure.ai.ml.entities import Model, OnlineRequestSettings

    folder = shutil.copytree(identifiers.SMALL_MODEL, tmp_path_factory.mktemp("looping") / "model")
    for file in folder.glob("chat_template*"):
        file.unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    model = client.models.create_or_update(Model(name="looping", path=folder, type="mlflow_model"))
    limits = OnlineRequestSettings(request_timeout_ms=TIMEOUT * 1000, max_concurrent_requests_per_instance=2)
    client.online_endpoints.begin_create_or_update(endpoint("looping")).result()
    demo = deployment("looping", "demo", model=model.id, request_settings=limits)
    client.online_deployments.begin_create_or_update(demo).result()
    key = client.online_endpoints.get_keys("looping").primary_key
    headers = {"Authorization": f"Bearer {key}", "azureml-model-deployment": "demo"}

    def asks(text: str) -> httpx.Response:
        given = {"input_string": [[{"role": "user", "content": text}]], "parameters": {"max_new_tokens": 2}}
        return anonymous.post("/endpoints/looping/score", json={"input_data": given}, headers=headers)

    yield asks
    client.online_endpoints.begin_delete("looping").result()


def test_a_template_that_does_not_end_is_ended_by_the_request_timeout(ask, emulator):
    begun = time.monotonic()
    assert ask("for ever").status_code == 408
    assert TIMEOUT - 1 < time.monotonic() - begun < 3 * TIMEOUT
    time.sleep(1)
    below = psutil.Process(emulator.process.pid).children(recursive=True)
    busy = [(process, process.cpu_times().user) for process in below]
    time.sleep(2)
    assert not [process for process, before in busy if process.cpu_times().user - before > 1]


def test_a_template_that_does_not_end_holds_up_nobody_else(ask):
    with ThreadPoolExecutor(1) as others:
        endless = others.submit(ask, "for ever")
        time.sleep(0.5)
        assert (ask("Hello").status_code, endless.done()) == (200, False)
        assert endless.result().status_code == 408
    assert ask("Hello").status_code == 200


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
def test_a_template_that_fills_the_memory_is_the_models_failure(ask):
    assert [ask(text).status_code for text in ("a lot", "Hello")] == [424, 200]
