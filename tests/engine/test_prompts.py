"""A model's template that does not end, behind an endpoint."""

import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import psutil
import pytest
from clients import deployment, endpoint

from local_azureml import identifiers

TIMEOUT = 5  # seconds
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
TEMPLATE = (
    f"{{% if 'for ever' in messages[0].content %}}{LOOP}{{% endif %}}"
    "{% if 'a lot' in messages[0].content %}{{ messages[0].content * 10 ** 9 }}{% endif %}"
    "What is one plus one?"
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
    address = client.online_endpoints.begin_create_or_update(endpoint("looping")).result().scoring_uri
    demo = deployment("looping", "demo", model=model.id, request_settings=limits)
    client.online_deployments.begin_create_or_update(demo).result()
    key = client.online_endpoints.get_keys("looping").primary_key
    headers = {"Authorization": f"Bearer {key}", "azureml-model-deployment": "demo"}

    def asks(text: str) -> httpx.Response:
        given = {"input_string": [[{"role": "user", "content": text}]], "parameters": {"max_new_tokens": 2}}
        return anonymous.post(address, json={"input_data": given}, headers=headers)

    yield asks
    client.online_endpoints.begin_delete("looping").result()


def test_a_template_that_does_not_end_holds_up_nobody_and_is_ended_by_the_request_timeout(ask, emulator):
    with ThreadPoolExecutor(1) as others:
        endless = others.submit(ask, "for ever")
        while not busy(emulator):
            assert not endless.done()
        assert (ask("Hello").status_code, endless.done()) == (200, False)
        assert endless.result().status_code == 408
    until = time.monotonic() + 60
    while busy(emulator):
        assert time.monotonic() < until
    assert ask("Hello").status_code == 200


def busy(emulator) -> bool:
    """Say whether one of the emulator's processes computes during the next half second."""

    def used() -> dict[psutil.Process, float]:
        found = {}
        for process in psutil.Process(emulator.process.pid).children(recursive=True):
            with suppress(psutil.Error):  # gone meanwhile
                found[process] = process.cpu_times().user
        return found

    before = used()
    time.sleep(0.5)
    return any(now - before.get(process, now) > 0.1 for process, now in used().items())


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
def test_a_template_that_fills_the_memory_is_the_models_failure(ask):
    assert [ask(text).status_code for text in ("a lot", "Hello")] == [424, 200]
