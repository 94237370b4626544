"""The component's five steps, each as the process that a job runs."""

import json
import os
import re
import shutil
import signal
import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from tiny_chats import chats, write_jsonl
from tiny_run import Run, child, machine

from local_azureml.engine import processes
from local_azureml.engine.chat_completion import STEPS
from local_azureml.engine.chat_completion.inputs import NOT_USED, interface

VALIDATE, IMPORT, PREPROCESS, FINETUNE, CONVERT = STEPS
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.gpu
LEARNED = {"max_steps": 24, "logging_steps": 8, "save_total_limit": 2}  # four epochs
OTHER = {"auto_find_batch_size": "true", "evaluation_strategy": "disable", "seed": 43}
LORA = {"apply_lora": "true", "lora_r": 4, "lora_alpha": 8}
DETERMINED = LORA | {"lora_dropout": 0.1, "enable_full_determinism": "true", "max_steps": 12}


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A random Phi-3 checkpoint."""
    folder = tmp_path_factory.mktemp("base")
    made = child("tiny_phi3:make_checkpoint", {"folder": str(folder / "model")}, folder)
    assert made.wait() == 0, (folder / "log.txt").read_text()
    return folder / "model"


@pytest.fixture(scope="session")
def sixty(tmp_path_factory) -> Path:
    """Sixty training conversations, of which 48 are trained on."""
    return write_jsonl(tmp_path_factory.mktemp("rows") / "train.jsonl", chats(60))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, base, sixty) -> Run:
    """A run whose first three steps are done."""
    run = Run(tmp_path_factory.mktemp("prepared"), mlflow_model_path=base, train_file_path=sixty)
    for name in (VALIDATE, IMPORT, PREPROCESS):
        assert run.step(name).wait() == 0, run.log(name)
    return run


@pytest.fixture(scope="session")
def finetune(prepared, tmp_path_factory):
    """A function that runs the fine-tune step on the prepared rows, once for the same words; one epoch."""
    quick = {"per_device_train_batch_size": 8, "logging_steps": 1, "learning_rate": 0.01, "max_steps": 6}
    made = {}

    def start(environment: dict | None = None, faults: dict | None = None, **inputs) -> Run:
        words = json.dumps([environment, faults, inputs], sort_keys=True, default=str)
        if words not in made:
            run = made[words] = Run(tmp_path_factory.mktemp("run"), **prepared.inputs | quick | inputs)
            run.upstream = dict(prepared.upstream)
            process = run.step(FINETUNE, environment, faults)
            run.code, run.error = process.wait(), process.error()
        return made[words]

    return start


def failure(process: processes.Process) -> tuple[int | None, str, str]:
    """Return exit code, error code and message of a child that failed."""
    error = process.error()
    return process.wait(), error["code"], error["message"]


# the inputs


def test_the_page_says_of_every_input_of_the_component_what_it_does_here():
    page = (ROOT / "local_azureml" / "README.md").read_text().partition("## The component's inputs")[2]
    uses = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", page.partition("\n## ")[0], re.M))
    assert (len(uses), uses.keys()) == (69, interface().keys())
    unused = {name: use.partition("not used: ")[2] for name, use in uses.items() if "not used: " in use}
    assert unused == NOT_USED


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (
            {"huggingface_id": "microsoft/Phi-3"},
            "huggingface_id is 'microsoft/Phi-3'; the emulator downloads no",
        ),
        ({"train_mltable_path": "table"}, "give the file itself as train_file_path"),
        ({"apply_ort": "true"}, "apply_ort is True; ONNX Runtime training is not part of the emulator"),
        ({"metric_for_best_model": "f1"}, "'f1'; the chat task measures the loss alone"),
        ({"num_train_epochs": "many"}, "num_train_epochs is 'many'; it has to be an integer"),
        ({"num_train_epochs": 0}, "num_train_epochs is 0; it has to be at least 1"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; it has to be a number"),
        ({"optim": "sgd"}, "optim is 'sgd'; it may be adamw_torch or adafactor"),
        ({"adam_beta1": 1.5}, "adam_beta1 is 1.5; it has to be at least 0 and below 1"),
        ({"learning_rate_min": 1}, "no input named 'learning_rate_min'"),
        ({"apply_deepspeed": "true", "auto_find_batch_size": "true"}, "can't be true together"),
        ({"train_file_path": "gone.jsonl"}, "train_file_path: there is no file gone.jsonl"),
        ({"train_file_path": __file__}, "test_chat_completion.py is none of the formats .jsonl, .json, .csv"),
    ],
)
def test_an_input_that_cannot_be_is_named_with_what_can(tmp_path, base, sixty, inputs, words):
    run = Run(tmp_path, mlflow_model_path=base, train_file_path=sixty)
    code, kind, message = failure(run.step(VALIDATE, **inputs))
    assert (code, kind, words in message) == (1, "UserError", True), message


def test_inputs_that_the_published_component_never_reads_are_named_in_the_log(tmp_path, base, sixty):
    given = {"mlflow_model_path": base, "train_file_path": sixty, "test_file_path": sixty}
    run = Run(tmp_path, **given, shm_size_finetune="9g")
    assert run.step(VALIDATE).wait() == 0
    named = [line.split()[0] for line in run.log(VALIDATE).splitlines() if "not used" in line]
    assert named == ["test_file_path", "shm_size_finetune"]


# the base model


def broken(base: Path, folder: Path, **config) -> Path:
    """Copy a checkpoint to `folder`, with some of its config changed."""
    shutil.copytree(base, folder)
    (folder / "config.json").write_text(json.dumps(json.loads((base / "config.json").read_text()) | config))
    return folder


def import_failure(tmp_path: Path, model: Path, environment: dict | None = None) -> str:
    code, kind, message = failure(Run(tmp_path / "run", mlflow_model_path=model).step(IMPORT, environment))
    assert (code, kind) == (1, "UserError")
    return message


@pytest.mark.parametrize("indexed", [True, False])
def test_weights_are_never_read_from_a_pickle(tmp_path, base, indexed):
    model = broken(base, tmp_path / "model")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    if indexed:
        index = {"weight_map": {"lm_head.weight": "pytorch_model.bin"}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "never from pickles" in import_failure(tmp_path, model)


def test_a_config_with_more_layers_than_there_are_weights_is_refused_before_any_is_made(tmp_path, base):
    model = broken(base, tmp_path / "model", num_hidden_layers=10**9)
    assert "says 1000000000 for num_hidden_layers" in import_failure(tmp_path, model)


def test_a_model_that_does_not_fit_is_refused_with_figures_before_it_is_loaded(tmp_path, base):
    message = import_failure(tmp_path, base, machine(free=1 << 19))
    assert message.startswith("the base model does not fit: 0.00 GiB planned"), message
    assert "0.00 GiB free; lower max_seq_length or per_device_train_batch_size, or set apply_lora" in message


# the rows


def tokens(run: Run, split: str) -> dict[str, list]:
    """Return the texts, learned texts and lengths of what the preprocess step kept."""
    folder = run.folder / "report"
    arrow = str(Path(run.upstream[PREPROCESS]) / f"{split}.arrow")
    assert child("tiny_phi3:report_tokens", {"arrow": arrow}, folder).wait() == 0, (
        folder / "log.txt"
    ).read_text()
    return json.loads((folder / "rows.json").read_text())


@pytest.fixture
def preprocess(prepared, tmp_path):
    """A function that runs the preprocess step on other rows, and returns the run."""

    def start(train: Path, **inputs) -> Run:
        run = Run(tmp_path / f"run{len(list(tmp_path.iterdir()))}", **prepared.inputs)
        run.upstream = {IMPORT: prepared.upstream[IMPORT]}
        run.process = run.step(PREPROCESS, train_file_path=train, **inputs)
        return run

    return start


@pytest.fixture(scope="module")
def kept(prepared) -> dict[str, dict]:
    return {split: tokens(prepared, split) for split in ("train", "validation")}


def test_loss_is_taken_on_the_assistants_words_alone(kept):
    talk = chats(60)[0]["messages"]
    marked = "".join(f"<|{turn['role']}|>\n{turn['content']}<|end|>\n" for turn in talk)
    spoken = "".join(f"{turn['content']}<|end|>\n" for turn in talk if turn["role"] == "assistant")
    found = (kept["train"]["texts"][0], kept["train"]["learned"][0])
    assert found == (f"{marked}<|endoftext|>", f"{spoken}<|endoftext|>")


def test_without_a_validation_file_the_last_fifth_of_the_rows_is_held_out(kept):
    asked = [chat["messages"][0]["content"] for chat in chats(60)]
    texts = [*kept["train"]["texts"], *kept["validation"]["texts"]]
    assert [text.split("\n")[1].removesuffix("<|end|>") for text in texts] == asked
    assert len(kept["validation"]["texts"]) == 12


def test_every_format_gives_the_same_rows(tmp_path, preprocess, prepared):
    table = pyarrow.Table.from_pylist(chats(60))
    text = table.set_column(
        2, "messages", pyarrow.array([json.dumps(row) for row in table["messages"].to_pylist()])
    )
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    pyarrow.csv.write_csv(text, tmp_path / "rows.csv")
    tabs = pyarrow.csv.WriteOptions(delimiter="\t")
    pyarrow.csv.write_csv(text, tmp_path / "rows.tsv", tabs)
    (tmp_path / "rows.json").write_text(json.dumps(chats(60)))
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, chats(60))))
    expected = (Path(prepared.upstream[PREPROCESS]) / "train.arrow").read_bytes()
    for name in ("rows.parquet", "rows.csv", "rows.tsv", "rows.json", "lines.json"):
        run = preprocess(tmp_path / name)
        assert run.process.wait() == 0, run.log(PREPROCESS)
        assert (Path(run.upstream[PREPROCESS]) / "train.arrow").read_bytes() == expected, name


def talk(*roles: str) -> dict:
    return {"messages": [{"role": role, "content": "Hello."} for role in roles]}


LONG = {"messages": [{"role": "user", "content": "cow " * 600}, {"role": "assistant", "content": "moo"}]}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([{"text": "a"}] * 20, "rows.jsonl has no column `messages`; its columns are text"),
        (chats(9), "rows.jsonl has 9 conversations; at least 10 are needed"),
        ([{"messages": []}] * 20, "no conversation of two messages or more in its 20 rows"),
        ([*chats(20), talk("user", "user")], "row 21 has the roles user, user; user and assistant have to"),
        ([*chats(20), talk("user", "tool")], "Failure while applying chat template to dataset"),
        ([LONG] * 30, "only 0 training rows keep assistant tokens after truncation; 10 are needed"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_a_users_error(tmp_path, preprocess, bad, words):
    run = preprocess(write_jsonl(tmp_path / "rows.jsonl", bad), validation_file_path=tmp_path / "rows.jsonl")
    code, kind, message = failure(run.process)
    assert (code, kind, words in message) == (1, "UserError", True), message


def test_rows_are_cut_at_max_seq_length_and_dropped_if_no_answer_is_left(tmp_path, preprocess):
    empty = [{"messages": None}, {"messages": []}, {"messages": chats(1)[0]["messages"][:1]}]
    file = write_jsonl(tmp_path / "rows.jsonl", [*empty, LONG, *chats(30)])
    run = preprocess(file, max_seq_length=30)
    lengths = tokens(run, "train")["lengths"]
    assert (len(lengths), max(lengths)) == (24, 30)
    log = run.log(PREPROCESS)
    assert log.startswith("rows.jsonl: 31 conversations of 34 rows\n")
    assert "1 without a token to learn from were dropped" in log
    assert re.search(r"train: 24 rows; \d+ longer than 30 tokens were cut by [\d,]+ in all, ", log)


def test_a_longer_max_seq_length_than_the_models_is_refused(sixty, preprocess):
    message = failure(preprocess(sixty, max_seq_length=4096).process)[2]
    assert message == "max_seq_length is 4096; the base model takes at most 256 tokens"


def test_pad_to_max_length_makes_all_rows_one_length_and_changes_no_loss(sixty, preprocess, finetune):
    padded = preprocess(sixty, pad_to_max_length="true", max_seq_length=64)
    assert set(tokens(padded, "train")["lengths"]) == {64}
    plain = finetune()
    assert padded.step(FINETUNE, **plain.inputs).wait() == 0, padded.log(FINETUNE)
    assert padded.losses() == pytest.approx(plain.losses(), rel=1e-4)


# the training


def test_the_loss_falls_and_each_log_line_says_where_training_stands(finetune):
    run = finetune(**LEARNED)
    losses = run.losses()
    assert (run.code, losses[-1] < losses[0] / 2) == (0, True)
    line = next(line for line in run.log(FINETUNE).splitlines() if line.startswith("step 16/24"))
    assert line.startswith(f"step 16/24  epoch 2.67  loss {losses[1]:.4f}  ")
    assert line.endswith(" left")
    assert "tokens/s" in line


def test_save_total_limit_keeps_so_many_checkpoints(finetune):
    assert len(list(finetune(**LEARNED).pytorch.glob("checkpoint-*"))) == 2


@pytest.fixture(scope="session")
def tracked(tmp_path_factory) -> dict[str, str]:
    """The environment of a job whose two runs exist in an MLflow store."""
    folder = tmp_path_factory.mktemp("tracking")
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    assert child("tiny_phi3:make_runs", {}, folder, **environment).wait() == 0, (
        folder / "log.txt"
    ).read_text()
    return environment | json.loads((folder / "runs.json").read_text())


def query(tracked: dict[str, str], words: str) -> list[tuple]:
    with sqlite3.connect(tracked["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///")) as database:
        return database.execute(words).fetchall()


def test_the_trainers_numbers_and_arguments_land_in_mlflow_on_both_runs_without_a_deepspeed_that_is_not_here(
    finetune, tracked
):
    given = {
        "num_train_epochs": 2, "max_steps": 6, "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 3, "optim": "adafactor", "learning_rate": 0.003, "warmup_steps": 2,
        "weight_decay": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-7,
        "gradient_accumulation_steps": 2, "eval_accumulation_steps": 4, "lr_scheduler_type": "cosine",
        "seed": 7, "dataloader_num_workers": 1, "max_grad_norm": 0.5, "logging_strategy": "steps",
        "logging_steps": 2, "eval_steps": 3, "save_total_limit": 1, "metric_for_best_model": "loss",
    }  # fmt: skip
    run = finetune(tracked, evaluation_strategy="steps", apply_deepspeed="true", **given)
    assert run.code == 0, run.log(FINETUNE)
    assert "DeepSpeed is left out" in run.log(FINETUNE)
    metrics = query(tracked, "SELECT run_uuid, key, step, value FROM metrics")
    of_child = {row[1:] for row in metrics if row[0] == tracked["MLFLOW_RUN_ID"]}
    of_root = {row[1:] for row in metrics if row[0] == tracked["AZUREML_ROOT_RUN_ID"]}
    assert of_child == of_root
    assert sorted(step for key, step, _ in of_child if key == "loss") == [2, 4, 6]
    assert sorted(step for key, step, _ in of_child if key == "eval_loss") == [3, 6]
    assert {"grad_norm", "learning_rate", "epoch", "eval_runtime", "train_runtime", "train_loss"} < {
        k for k, _, _ in of_child
    }
    logged = dict(query(tracked, "SELECT key, value FROM params"))
    assert {name: logged[name] for name in given} == {name: str(value) for name, value in given.items()}


def test_another_seed_gives_other_losses(finetune):
    assert finetune(**OTHER).losses() != finetune().losses()


def test_disabled_evaluation_logs_no_evaluation_loss(finetune):
    assert not evaluations(finetune(**OTHER))


def test_auto_find_batch_size_trains_with_a_batch_that_fits(finetune):
    run = finetune(**OTHER)
    assert (run.code, len(run.losses())) == (0, 6)


def evaluations(run: Run) -> dict[float, float]:
    """Return the losses of evaluation by the epoch."""
    return {log["epoch"]: log["eval_loss"] for log in run.history() if "eval_loss" in log}


@pytest.fixture(scope="module")
def two(finetune) -> tuple[Run, set[str]]:
    """A training of two processes, and the addresses at which any of them listened meanwhile."""
    ended, heard = threading.Event(), set()

    def listen() -> None:
        while not ended.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    there = process.net_connections("inet")
                    heard.update(one.laddr.ip for one in there if one.status == psutil.CONN_LISTEN)

    listener = threading.Thread(target=listen)
    listener.start()
    run = finetune(machine(cores=2), per_device_train_batch_size=4, number_of_gpu_to_use_finetuning=2)
    ended.set()
    listener.join()
    return run, heard


def test_two_processes_give_the_losses_of_one_with_the_same_global_batch(finetune, two):
    one, two = finetune(), two[0]
    assert "processes: 2 asked, 2 run on " in two.log(FINETUNE)
    assert two.losses() == pytest.approx(one.losses(), rel=1e-4)
    assert evaluations(two) == pytest.approx(evaluations(one), rel=1e-4)


def test_the_processes_of_a_training_listen_on_loopback_alone(two):
    assert (two[0].code, two[1]) == (0, {"127.0.0.1"})


def test_the_gpus_of_all_nodes_are_made_up_by_accumulation_where_the_machine_has_no_room_for_them(finetune):
    """The losses are those of one batch, too, whose rows so do not see one another."""
    asked = {"num_nodes_finetune": 2, "number_of_gpu_to_use_finetuning": 4, "per_device_train_batch_size": 1}
    spread = finetune(machine(cores=1), **asked)
    assert "processes: 8 asked, 1 run" in spread.log(FINETUNE)
    assert "accumulates 8 batches" in spread.log(FINETUNE)
    assert spread.losses() == pytest.approx(finetune().losses(), rel=1e-4)


def test_weights_of_other_shapes_than_the_config_says_are_refused_or_started_afresh(prepared, base, tmp_path):
    run = Run(tmp_path / "run", **prepared.inputs, max_steps=1)
    run.upstream = prepared.upstream | {IMPORT: str(broken(base, tmp_path / "wide", vocab_size=500))}
    refused = failure(run.step(FINETUNE))
    assert (refused[:2], "set ignore_mismatched_sizes" in refused[2]) == ((1, "UserError"), True)
    assert run.step(FINETUNE, ignore_mismatched_sizes="true").wait() == 0, run.log(FINETUNE)


def weights(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.safetensors")}


def test_merged_lora_leaves_an_ordinary_checkpoint(finetune, base):
    run = finetune(**DETERMINED)
    left = (run.code, weights(run.pytorch), (run.pytorch / "adapter").exists())
    assert left == (0, {"model.safetensors"}, False)
    assert (run.pytorch / "model.safetensors").read_bytes() != (base / "model.safetensors").read_bytes()


def test_kept_lora_leaves_the_base_as_it_was_with_the_adapter_beside_it(finetune, base):
    run = finetune(**LORA, merge_lora_weights="false")
    settings = json.loads((run.pytorch / "adapter/adapter_config.json").read_text())
    assert (run.code, settings["r"], settings["lora_alpha"]) == (0, 4, 8)
    assert (run.pytorch / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert run.step(CONVERT).wait() == 0, run.log(CONVERT)
    assert (run.mlflow / "model/model.safetensors").read_bytes() != (base / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("share", "limit", "evaluated"),
    [
        (0.01, {"max_steps": 2}, [1 / 6, 2 / 6]),
        (0.5, {"num_train_epochs": 3, "max_steps": 6}, [0.5, 1.0]),  # six steps are an epoch
        (
            0.5,
            {"num_train_epochs": 9, "max_steps": -1, "learning_rate": 1e-9}
            | {"apply_early_stopping": "true", "early_stopping_threshold": 9},
            [0.5, 1.0],  # at which it no longer improves
        ),
    ],
)
def test_evaluation_is_after_each_share_of_an_epoch_until_it_is_stopped(finetune, share, limit, evaluated):
    run = finetune(evaluation_strategy="steps", evaluation_steps_interval=share, **limit)
    assert [*evaluations(run)] == pytest.approx(evaluated, abs=0.001)
    assert run.history()[-1]["epoch"] == pytest.approx(evaluated[-1], abs=0.001)


def test_a_resumed_run_goes_on_from_the_checkpoint_to_the_same_losses_to_the_last_digit(finetune, tmp_path):
    whole = finetune(**DETERMINED)
    halfway = Run(tmp_path, **whole.inputs, resume_from_checkpoint="true")
    halfway.upstream = dict(whole.upstream)
    shutil.copytree(whole.pytorch / "checkpoint-6", halfway.pytorch / "checkpoint-6")
    assert halfway.step(FINETUNE).wait() == 0, halfway.log(FINETUNE)
    assert "going on from checkpoint-6" in halfway.log(FINETUNE)
    assert halfway.losses() == whole.losses()


def test_an_earlier_output_given_as_base_model_is_resumed_from(finetune, tmp_path):
    first = finetune()
    again = {"mlflow_model_path": first.pytorch, "max_steps": 8, "resume_from_checkpoint": "true"}
    run = Run(tmp_path, **first.inputs | again)
    run.upstream = dict(first.upstream)
    for name in (IMPORT, FINETUNE):
        assert run.step(name).wait() == 0, run.log(name)
    assert [log["step"] for log in run.history() if "loss" in log] == [*range(1, 9)]


def test_a_loss_that_is_no_number_fails_the_job(finetune):
    run = finetune(learning_rate=1e30, max_grad_norm=0)
    assert run.code == 1
    assert run.error["code"] == "UserError"
    assert re.match("the loss became (nan|inf) at step", run.error["message"])


def test_no_memory_left_in_one_of_several_processes_is_said_with_what_to_lower(finetune):
    run = finetune(faults={"out-of-memory": None}, number_of_gpu_to_use_finetuning=2)
    assert (run.code, run.error["code"]) == (1, "UserError")
    assert run.error["message"].startswith("out of memory while training with ")


def test_a_deepspeed_file_that_is_no_json_is_refused(finetune, sixty):
    run = finetune(apply_deepspeed="true", deepspeed=sixty)
    assert "deepspeed: train.jsonl is no JSON file" in run.log(FINETUNE)


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        (VALIDATE, "validation-failed"),
        (PREPROCESS, "preprocess-failed"),
        (FINETUNE, "finetune-failed"),
        (CONVERT, "convert-failed"),
    ],
)
def test_a_fault_fails_its_step(prepared, tmp_path, step, fault):
    run = Run(tmp_path, **prepared.inputs)
    run.upstream = dict(prepared.upstream)
    assert failure(run.step(step, faults={fault: ""})) == (
        1,
        "UserError",
        f"the fault {fault} is switched on",
    )


# the model that comes out


@pytest.fixture(scope="module")
def converted(finetune) -> Run:
    run = finetune(**LEARNED)
    assert run.step(CONVERT).wait() == 0, run.log(CONVERT)
    return run


def test_the_mlflow_folder_is_loaded_by_mlflow_and_answers_as_its_checkpoint_does(converted, tmp_path):
    asked = {"model": str(converted.mlflow), "checkpoint": str(converted.pytorch)}
    done = child("tiny_phi3:report_answers", asked, tmp_path)
    assert done.wait() == 0, (tmp_path / "log.txt").read_text()
    signature, [answer], expected = json.loads((tmp_path / "answers.json").read_text())
    assert (signature, answer) == (None, expected)


def test_the_mlflow_folder_holds_no_pickle_and_no_path_of_this_machine(converted):
    files = [path for path in converted.mlflow.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".jinja", ".safetensors", ".txt", ".yaml", ""}
    assert not [path for path in files if str(converted.folder).encode() in path.read_bytes()]


# the processes


def gone(pid: int) -> bool:
    """Say whether a process ends."""
    for _ in range(1200):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def started(folder: Path) -> list[int]:
    for _ in range(2400):  # the libraries may be imported first, on a busy machine
        with_pids = folder / "pids.json"
        if with_pids.exists() and with_pids.stat().st_size:
            return json.loads(with_pids.read_text())
        time.sleep(0.05)
    raise TimeoutError((folder / "log.txt").read_text())


def test_a_step_has_a_temporary_folder_of_its_own_which_goes_with_it(tmp_path):
    """In one that is everybody's, others may put what it loads, and read what it leaves."""
    step = child("sleepers:write_a_temporary_file", {}, tmp_path, TMPDIR=str(tmp_path))
    file = Path((tmp_path / "log.txt").read_text().strip())
    assert (step.wait(), file.parents[1], file.parent.exists()) == (0, tmp_path, False)


def test_kill_ends_a_step_and_the_processes_that_it_started(tmp_path):
    step = processes.start("sleepers:sleep_with_a_child", {}, tmp_path, tmp_path / "log.txt", {})
    pids = started(tmp_path)
    step.kill()
    assert (step.wait(60), [gone(pid) for pid in pids]) == (-signal.SIGKILL, [True, True])


def test_what_a_step_started_dies_with_it_and_its_death_has_a_reason(tmp_path):
    step = processes.start("sleepers:sleep_with_a_child", {}, tmp_path, tmp_path / "log.txt", {})
    leader, child_of_it = started(tmp_path)
    os.kill(leader, signal.SIGKILL)
    assert (step.wait(60), gone(child_of_it)) == (-signal.SIGKILL, True)
    assert step.error()["message"] == "the process was killed, probably out of memory"


def test_an_exception_in_a_step_is_a_system_error_with_its_traceback_in_the_log(tmp_path):
    step = child("json:loads", {}, tmp_path)
    assert failure(step)[:2] == (1, "SystemError")
    assert "Traceback" in (tmp_path / "log.txt").read_text()
