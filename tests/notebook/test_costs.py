"""costs.py: what is bound to fail is refused before money, and a run says what it costs at most."""

import dataclasses
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from conftest import ROOT

import costs

A100, T4 = "Standard_NC24ads_A100_v4", "Standard_NC4as_T4_v3"
SIZES = [SimpleNamespace(name=A100, gpus=1), SimpleNamespace(name="Standard_NC48ads_A100_v4", gpus=2)]
TUTORIAL = {"apply_lora": "true", "apply_deepspeed": "true", "precision": 16}


@pytest.fixture(scope="module")
def component(registry_client):
    return registry_client.components.get("chat_completion_pipeline", label="latest")


@pytest.fixture
def training(component, tmp_path):
    """A function that returns a training of so many conversations of 4,800 characters, a fifth to test."""

    def of(
        settings: dict, rows: int = 10_000, size: str = A100, gpus: int = 1, model: str = "Phi-3-mini-4k-x"
    ):
        talk = {
            "messages": [
                {"role": "user", "content": "x" * 2400},
                {"role": "assistant", "content": "é" * 2400},
            ]
        }
        file = tmp_path / "one.jsonl"
        file.write_text(f"{json.dumps(talk)}\n")
        cluster = SimpleNamespace(tier="Dedicated", idle_time_before_scale_down=120)
        now = SimpleNamespace(model=SimpleNamespace(name=model), component=component, cluster=cluster)
        now.settings, now.gpus_per_node, now.job_limit_minutes = TUTORIAL | settings, gpus, 240
        now.folder, now.data = tmp_path, {"train": file.name, "test": file.name}
        once = costs.Training.of(now, size)
        return dataclasses.replace(once, lengths=once.lengths * (rows - rows // 5), tested=rows // 5)

    return of


def refused(training) -> list[str]:
    return [f"{one.what}: {one.found}" for one in training.checks(SIZES) if not one.fine]


@pytest.mark.parametrize("model", ["Phi-3-mini-4k-instruct", "Phi-4", "somebody-elses"])
def test_five_percent_of_ultrachat_trains_on_the_machine_of_the_tutorial(training, model):
    assert refused(training({}, model=model)) == []


@pytest.mark.parametrize(
    ("settings", "others", "words"),
    [
        ({"per_device_train_batch_size": 8}, {"rows": 60, "gpus": 8}, "training rows: 48"),
        ({"max_seq_length": 8192}, {}, "max_seq_length: 8192"),
        ({}, {"model": "Phi-4", "size": T4, "rows": 1000}, "memory of a GPU: 16 GB"),
        ({"per_device_train_batch_size": 512}, {}, "memory of a GPU: 80 GB"),
        ({"apply_lora": "false"}, {"model": "Phi-4"}, "memory of a GPU: 80 GB"),
        ({}, {"rows": 200_000}, "job_limit_minutes: 240"),
        ({"evaluation_strategy": "steps", "eval_steps": 100}, {}, "evaluations: 80"),
        ({"evaluation_strategy": "steps", "evaluation_steps_interval": 0.05}, {}, "evaluations: 20"),
        ({"evaluation_strategy": "steps", "eval_steps": 9000}, {}, "eval_steps: 9000"),
        ({"apply_early_stopping": "true", "num_train_epochs": 1}, {}, "early_stopping_patience: 1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_a_training_that_is_bound_to_fail_or_of_no_use_is_refused_for_that_alone(
    training, settings, others, words
):
    assert refused(training(settings, **others)) == [words]


def test_the_machine_that_would_do_is_named(training):
    [check] = [one for one in training({}, 1000, model="Phi-4", size=T4).checks(SIZES) if not one.fine]
    assert check.needed == "30 GB or more" and check.advice.startswith(f"choose compute_size {A100}, or")


def test_max_steps_and_the_longest_row_bound_the_tokens(training):
    assert training({}).tokens == 8000 * 1200
    assert training({"max_steps": 10, "per_device_train_batch_size": 4}).tokens == 40 * 1200
    assert training({"max_seq_length": 100, "num_train_epochs": 2}).tokens == 2 * 8000 * 100


@pytest.fixture
def price_list():
    """A function that serves an answer in the place of Azure's price list, and returns its address."""
    servers = []

    def serve(answer: bytes, waits: threading.Event | None = None) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if waits:
                    return waits.wait()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/prices"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def item(sku: str, price: float, product: str = "Virtual Machines NCADS A100 v4 Series") -> dict:
    return {"armSkuName": A100, "skuName": sku, "productName": product, "retailPrice": price}


LISTED = [
    item("NC24ads A100 v4", 3.673),
    item("NC24ads A100 v4 Spot", 0.9),
    item("NC24ads A100 v4 Low Priority", 1.469),
    item("NC24ads A100 v4", 4.777, "Virtual Machines NCADS A100 v4 Series Windows"),
]


def test_the_prices_are_those_of_linux_by_tier_and_never_those_of_spot_machines(price_list):
    address = price_list(json.dumps({"Items": LISTED}).encode())
    size = A100.lower()
    found = costs.prices("eastus", [A100], address)
    assert found == {(size, "dedicated"): 3.673, (size, "low_priority"): 1.469}


def test_an_answer_that_is_no_price_list_gives_no_price(price_list):
    free = json.dumps({"Items": [item("x", "free")]}).encode()
    for answer in (b"<html>log in first</html>", b"[]", b'{"Items": [{}]}', b"{}", free):
        assert costs.prices("eastus", [A100], price_list(answer)) == {}


def test_a_price_list_that_does_not_answer_is_not_waited_for(price_list):
    ends = threading.Event()
    address = price_list(json.dumps({"Items": LISTED}).encode(), waits=ends)
    assert costs.prices("eastus", [A100], address) == {}
    ends.set()


def test_without_the_list_the_price_is_the_readmes_and_says_so(training, monkeypatch):
    monkeypatch.setattr(costs, "prices", lambda *_: {})  # as it is without a network
    said = training({}).at_most("eastus", A100, 2)
    assert said == (
        "Training costs at most 14.92 USD: 1 x Standard_NC24ads_A100_v4 for 4.0 h (job_limit_minutes, which"
        " this kernel enforces, and the idle time), for about 9,600,000 tokens, at 4 characters each."
        " Answering costs 7.40 USD an hour: 2 x Standard_NC24ads_A100_v4."
        " Prices: the README's figure, for the US in 2026."
    )
    assert "about 3.70 USD an hour in the United States in" in (ROOT / "README.md").read_text("utf-8")
    assert "at most an unknown price" in training({}, size=T4).at_most("eastus", A100, 2)
