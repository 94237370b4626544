"""safeguards.py: what it checks, reads and says, and what it deletes."""

import contextlib
import io
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import ROOT

import safeguards

PHI_3 = "Phi-3-mini-4k-instruct"


def endpoint(client, name: str, run_id: str) -> None:
    """Create an endpoint of a run."""
    from azure.ai.ml.entities import ManagedOnlineEndpoint

    made = ManagedOnlineEndpoint(name=name, tags={"made_by": safeguards.MADE_BY, "run_id": run_id})
    client.online_endpoints.begin_create_or_update(made).result()


def endpoints(client) -> set[str]:
    return {found.name for found in client.online_endpoints.list()}


def place(client) -> list[str]:
    return [client.subscription_id, client.resource_group_name, client.workspace_name]


@pytest.fixture(scope="module")
def component(registry_client):
    return registry_client.components.get("chat_completion_pipeline", label="latest")


@pytest.mark.parametrize(
    ("given", "needed", "advice"),
    [
        ({"learning_rate": "5e-6"}, "a number above 0, below 1", "write 5.0e-06"),
        ({"num_train_epochs": "2"}, "a whole number, 1 or more", "write 2"),
        ({"apply_lora": True}, "'true' or 'false'", "mend finetune_parameters"),
    ],
)
def test_a_training_input_of_another_type_is_told_with_what_is_needed(component, given, needed, advice):
    [check] = safeguards.check_inputs(component, {}, given, {})
    assert (check.fine, check.needed, check.advice) == (False, needed, advice)


def test_the_parameters_of_an_answer_are_checked_before_an_endpoint_is_billed(component):
    fine = {"temperature": 0.6, "top_p": 0.9, "do_sample": False, "max_new_tokens": 200}
    wrong = {"temperature": "hot", "top_p": 0, "do_sample": 1, "max_new_tokens": 0}
    for given, expected in ((fine, True), (wrong, False)):
        checks = safeguards.check_inputs(component, {}, {}, given)
        assert [check.fine for check in checks] == [expected] * 4


def model(name: str, tags: dict | None = None, metadata: dict | None = None):
    from azure.ai.ml.entities import Model

    return Model(name=name, version="8", path="azureml://x", tags=tags or {}, system_metadata=metadata)


RETIRED = "Warning: fine-tuning of {} still works, but was retired on {} and is unsupported; {}.\n"
OTHERS = RETIRED.format("Phi-4", "2026-01-02", "see https://ml.azure.com/models")
LISTS = {"finetune_compute_allow_list": "['A']", "inference_compute_allow_list": "['B']"}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (model(PHI_3, LISTS), RETIRED.format(PHI_3, "2025-08-30", "its successor is Phi-4")),
        (model("Phi-4", LISTS | {"FinetuneRetirementDate": "2026-01-02"}), OTHERS),
        (model("Phi-4", LISTS | {"FinetuneRetirementDate": "2999-01-02"}), ""),
        (
            model("Phi-4"),
            "The registry doesn't say of Phi-4 8 which machine sizes it fits"
            " (GPU memory and region decide), or whether its fine-tuning is retired.\n",
        ),
        (
            model(
                "Phi-4",
                metadata={
                    "supportedComputes": {"finetuneComputes": ["A"], "inferenceComputes": ["B"]},
                    "deprecation": {"finetuneRetirementDate": "2026-01-02T00:00:00.000000Z"},
                },
            ),
            OTHERS,
        ),
    ],
    ids=["known here", "in a tag", "in a tag, to come", "nowhere", "in system_metadata"],
)
def test_a_retired_model_is_named_and_so_is_what_nobody_tells(told, words, capsys):
    safeguards.check_model(None, told, "")
    assert capsys.readouterr().out == words


def test_a_model_without_a_list_fits_sizes_with_enough_gpu_memory_the_smallest_first(client):
    sizes, _ = safeguards.region(client)
    fitting = safeguards.usable(sizes, [])
    assert fitting[0] == "standard_nc24ads_a100_v4" and "standard_nc4as_t4_v3" not in fitting
    assert safeguards.first_fit(client, model("Phi-4")).lower() == fitting[0]


def test_an_input_that_the_component_lacks_is_dropped_with_a_warning(component, capsys):
    given = {"learning_rate": 1e-5, "learning_rate_max": 1e-4}
    assert safeguards.accepted(component, given) == {"learning_rate": 1e-5}
    assert "no input learning_rate_max; the recommended 0.0001 is dropped" in capsys.readouterr().out


def test_only_the_endpoint_of_the_watchers_own_run_is_deleted(client):
    endpoint(client, "fixed-name", "2")
    safeguards.delete_from_outside("fixed-name", "1", *place(client))  # of an older kernel
    assert "fixed-name" in endpoints(client)
    safeguards.delete_from_outside("fixed-name", "2", *place(client))
    assert "fixed-name" not in endpoints(client)


def test_the_endpoint_is_deleted_when_its_kernel_is_killed(client):
    endpoint(client, "watched", "3")
    kernel = "import safeguards, sys; from conftest import client_of; safeguards.delete_when_kernel_ends("
    kernel += "client_of(), 'watched', '3', unless=False); print('armed', flush=True); sys.stdin.read()"
    paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    with subprocess.Popen(
        [sys.executable, "-c", kernel],
        env={**os.environ, **paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "armed\n"
        process.kill()
    until = time.monotonic() + 60
    while "watched" in endpoints(client) and time.monotonic() < until:
        time.sleep(0.2)
    assert "watched" not in endpoints(client)


def test_another_runs_endpoint_is_not_taken_over(client):
    endpoint(client, "theirs", "4")
    with pytest.raises(RuntimeError, match="endpoint theirs is another run's: choose another endpoint_name"):
        safeguards.delete_when_kernel_ends(client, "theirs", "5", unless=False)
    safeguards.delete_ours(client, "theirs", "5")
    assert "theirs" in endpoints(client)
    client.online_endpoints.begin_delete("theirs").result()


def test_what_runs_names_the_way_to_stop_it(client):
    endpoint(client, "left-over", "6")
    row = safeguards.what_runs(client, "none-of-this-name").loc["left-over"]
    client.online_endpoints.begin_delete("left-over").result()
    command = "az ml online-endpoint delete --yes -g local -w local --name left-over"
    assert row.to_list() == ["endpoint of run 6", f"billed until: {command}"]


def test_a_failed_try_is_followed_by_one_of_another_name(monkeypatch):
    monkeypatch.setattr(safeguards, "told_failures", {"a", "a-2"})
    assert [safeguards.next_try("a"), safeguards.next_try("b")] == ["a-3", "b"]


class Order:
    """A pipeline job as `fingerprint` sees it: as the text that the SDK would submit."""

    def __init__(self, text: str):
        self.text = text

    def __str__(self) -> str:
        return self.text


def test_a_fingerprint_differs_where_anything_in_the_order_does():
    orders = [("max_steps: 2", "abc"), ("max_steps: 3", "abc"), ("max_steps: 2", "abd")]
    assert len({safeguards.fingerprint(Order(text), content) for text, content in orders}) == 3
    assert safeguards.fingerprint(Order("a"), "b") == safeguards.fingerprint(Order("a"), "b")


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("HuggingFaceH4/ultrachat_200k", "ultrachat-200k"),
        ("../my chats.jsonl.gz", "my-chats"),
        (r"C:\data\Café.csv", "caf"),
        ("对话.jsonl", "chats"),
    ],
)
def test_a_dataset_is_called_by_its_last_part_in_letters_that_azure_takes(dataset, name):
    assert safeguards.short_name(dataset) == name


def test_a_script_that_fails_is_quoted_with_its_last_line(tmp_path):
    (tmp_path / "script.py").write_text("import sys; sys.exit('first\\nthe reason')")
    with pytest.raises(RuntimeError, match=r"nothing was billed\. the reason"):
        safeguards.run_script(str(tmp_path / "script.py"))


def test_nobody_is_asked_to_log_in_where_nobody_is():
    from azure.core.exceptions import ClientAuthenticationError
    from IPython.core.error import StdinNotImplementedError

    def refuse(*_):
        raise ClientAuthenticationError("no token")

    def nobody(*_):
        raise StdinNotImplementedError

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr("builtins.input", nobody)
        with pytest.raises(RuntimeError, match="nobody is here to log in: run `az login`"):
            safeguards.log_in(SimpleNamespace(get_token=refuse))
