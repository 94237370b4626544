"""safeguards.py: what it checks, reads and says, and what it deletes."""

import contextlib
import io
import json
import math
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pandas
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
        ({"learning_rate": -1}, "a number above 0, below 1", "mend finetune_parameters"),
        ({"learning_rate": 1000}, "a number above 0, below 1", "mend finetune_parameters"),
        ({"learning_rate": "5e-6"}, "a number above 0, below 1", "write 5.0e-06"),
        ({"max_seq_length": 0}, "a whole number, -1, or 1 or more", "mend finetune_parameters"),
        ({"num_train_epochs": 0}, "a whole number, 1 or more", "mend finetune_parameters"),
        ({"num_train_epochs": "2"}, "a whole number, 1 or more", "write 2"),
        ({"lora_dropout": 1}, "a number, 0 or more, below 1", "mend finetune_parameters"),
        ({"apply_lora": True}, "'true' or 'false'", "mend finetune_parameters"),
    ],
)
def test_a_training_input_out_of_range_is_told_with_what_is_needed(component, given, needed, advice):
    [check] = safeguards.check_inputs(component, {}, given, {})
    assert (check.fine, check.needed, check.advice) == (False, needed, advice)


@pytest.mark.parametrize(
    "given",
    [
        {
            "learning_rate": 5e-6,
            "max_seq_length": -1,
            "num_train_epochs": 1,
            "weight_decay": 0,
            "precision": 16,
        },
        {"apply_lora": "true", "max_steps": 5, "lora_dropout": 0.1, "deepspeed_stage": 3, "seed": 0},
    ],
)
def test_training_inputs_in_range_are_fine(component, given):
    assert [check for check in safeguards.check_inputs(component, {}, given, {}) if not check.fine] == []


@pytest.mark.parametrize(
    ("given", "fine"),
    [
        ({"temperature": 0.6, "top_p": 0.9, "do_sample": False, "max_new_tokens": 200}, True),
        ({"temperature": "hot"}, False),
        ({"max_tokens": 50}, False),
        ({"max_new_tokens": 0}, False),
        ({"do_sample": 1}, False),
        ({"top_p": 0}, False),
    ],
)
def test_the_parameters_of_an_answer_are_checked_before_an_endpoint_is_billed(component, given, fine):
    assert all(check.fine for check in safeguards.check_inputs(component, {}, {}, given)) == fine


def model(name: str, tags: dict | None = None, metadata: dict | None = None):
    from azure.ai.ml.entities import Model

    return Model(name=name, version="8", path="azureml://x", tags=tags or {}, system_metadata=metadata)


RETIRED = "Warning: fine-tuning of {} still works, but was retired on {} and is unsupported; {}.\n"
OTHERS = RETIRED.format("Phi-4", "2026-01-02", "see https://ml.azure.com/models")
LISTS = {"finetune_compute_allow_list": "['A']", "inference_compute_allow_list": "['B']"}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (
            model(PHI_3, LISTS),
            RETIRED.format(PHI_3, "2025-08-30", "its successor is Phi-4"),
        ),
        (
            model("Phi-4", LISTS | {"FinetuneRetirementDate": "2026-01-02"}),
            OTHERS,
        ),
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


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "(Forbidden) ask for a role\nCode: Forbidden\nException Details:\t(Forbidden) no",
            "(Forbidden) ask for a role",
        ),
        (
            "\x1b[37m\nError:\n\x1b[39mDetails: \x1b[31m\n\n(x) Met <class 'azure.core.exceptions."
            "ServiceResponseError'>: ('Connection\naborted.')\n\n\x1b[39mResolutions: \n1) Try",
            "('Connection aborted.')",
        ),
        ("no /subscriptions/01234567-89ab-cdef-0123-456789abcdef/x", "no /subscriptions/.../x"),
    ],
)
def test_a_reason_is_one_line_without_colours_classes_and_subscription_ids(said, reason):
    assert safeguards.why(RuntimeError(said)) == reason


def test_an_upload_leaves_no_empty_box_of_colour_codes(capsys):
    with safeguards.explained("no job was submitted", "run it again"):
        print("\x1b[39m\n", file=sys.stderr)
        print("a warning", file=sys.stderr)
    assert capsys.readouterr().err.strip() == "a warning"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ('{"output": "Hi"}', "Hi"),
        ('[{"0": "Hi"}]', "Hi"),
        ('{"output": "Hi", "finish_reason": "stop"}', "Hi"),
    ],
    ids=["vllm", "mlflow", "openai"],
)
def test_each_form_of_answers_is_read(raw, text):
    assert safeguards.answer(lambda *_: raw, "demo", [{"role": "user", "content": "Hello?"}]) == text


def test_the_flat_form_is_asked_in_where_the_nested_one_is_refused_in_plain_text():
    from azure.ai.ml.exceptions import MlException

    def ask(_, conversation: list) -> str:
        if isinstance(conversation[0], list):
            raise MlException("An unexpected error occurred", "")  # as the SDK does where the body is no JSON
        return json.dumps({"output": conversation[0]["content"]})

    assert safeguards.answer(ask, "demo", [{"role": "user", "content": "Hello?"}]) == "Hello?"


@pytest.mark.parametrize(
    ("training", "evaluation", "warns"),
    [
        ([4.0, 1.0], [1.2], False),
        ([4.0, 8.3], [8.3], True),
        ([4.0], [math.nan], True),
        ([4.0, 3.0], [], False),
    ],
)
def test_a_loss_that_ends_well_above_its_beginning_is_warned_of(training, evaluation, warns, capsys):
    safeguards.judge(*([SimpleNamespace(value=value) for value in curve] for curve in (training, evaluation)))
    assert ("nothing was learned" in capsys.readouterr().out) == warns


def test_a_table_has_texts_on_the_left_with_their_line_breaks_and_no_markup_of_theirs(capsys):
    safeguards.show_table(pandas.DataFrame({"said": ["<b>one</b>\ntwo"]}))
    page = capsys.readouterr().out
    assert (
        "text-align: left" in page
        and "white-space: pre-wrap" in page
        and "&lt;b&gt;one&lt;/b&gt;\\ntwo" in page
    )


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
    safeguards.delete_ours(lambda: pytest.fail("it was deleted"), client, "theirs", "5")
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


def test_a_fingerprint_differs_where_anything_in_the_order_does():
    order = ("model/1", "data, 5 %", {"max_steps": 2})
    others = [("model/2", *order[1:]), (order[0], "data, 6 %", order[2]), (*order[:2], {"max_steps": 3})]
    assert len({safeguards.fingerprint(*each) for each in (order, *others)}) == 4
    assert safeguards.fingerprint(*order) == safeguards.fingerprint(*order[:2], dict(order[2]))


def test_a_notebook_opened_without_the_module_says_to_clone_the_repository(tmp_path):
    import nbformat

    cells = nbformat.read(ROOT / "finetune_phi3_ultrachat.ipynb", as_version=4).cells
    [setup] = [cell.source for cell in cells if cell.id == "setup"]
    (tmp_path / "setup.py").write_text(setup)
    ended = subprocess.run([sys.executable, "setup.py"], cwd=tmp_path, capture_output=True, text=True)
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: this kernel has no safeguards: clone the whole repository")


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
