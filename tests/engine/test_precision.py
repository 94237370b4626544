"""What the processor chooses, tried on whatever processor there is."""

import json
from pathlib import Path

import pytest
from test_chat_completion import CONVERT, FINETUNE, PREPROCESS, base, finetune, prepared, sixty  # noqa: F401
from tiny_run import child, machine

pytestmark = pytest.mark.gpu
FP32, BF16 = {"half": None}, {"half": "bf16", "half_pays_from": 0}


@pytest.mark.parametrize(
    ("played", "lora", "processes"),
    [(FP32, "true", 2), (FP32, "false", 1), (BF16, "true", 1), (BF16, "false", 2)],  # each pair of two once
)
def test_what_is_evaluated_is_what_is_served(finetune, played, lora, processes):  # noqa: F811
    run = finetune(
        machine(cores=2, **played),
        precision=16,
        apply_lora=lora,
        number_of_gpu_to_use_finetuning=processes,
    )
    assert run.code == 0, run.log(FINETUNE)
    why = "bf16" if played["half"] else "fp32, since this CPU has no bf16 instructions"
    assert f"computing in {why}\n" in run.log(FINETUNE)
    assert f"{processes} run on 2 CPU cores" in run.log(FINETUNE)
    assert run.step(CONVERT).wait() == 0, run.log(CONVERT)
    reported = [log["eval_loss"] for log in run.history() if "eval_loss" in log]
    assert reported[-1] == pytest.approx(loss_of(run), rel=0.01)


@pytest.mark.parametrize("lora", ["true", "false"])
@pytest.mark.parametrize(("played", "rounding"), [(FP32, 1e-5), (BF16, 0.03)])
def test_loss_and_gradients_are_those_of_a_plain_trainer_that_pads(
    prepared,  # noqa: F811
    tmp_path,
    played,
    lora,
    rounding,
):
    inputs = {"precision": "16", "apply_lora": lora, "per_device_train_batch_size": 8}
    specification = {
        "inputs": {name: str(value) for name, value in (prepared.inputs | inputs).items()},
        "upstream": prepared.upstream,
        "outputs": {"pytorch_model_folder": str(tmp_path / "pytorch")},
        "faults": {},
    }
    compared = child("tiny_models:compare_with_plain_training", specification, tmp_path, **machine(**played))
    assert compared.wait() == 0, (tmp_path / "log.txt").read_text()
    ours, plain, apart = json.loads((tmp_path / "compared.json").read_text())
    assert (ours, apart < rounding) == (pytest.approx(plain, rounding), True), apart


def test_the_memory_planned_is_what_a_step_keeps_within_a_quarter(tmp_path):
    done = child("tiny_models:report_memory", {}, tmp_path)
    assert done.wait() == 0, (tmp_path / "log.txt").read_text()
    ratios = json.loads((tmp_path / "memory.json").read_text())
    assert {name: ratio for name, ratio in ratios.items() if not 0.8 < ratio < 1.25} == {}


def loss_of(run) -> float:
    """Return the loss of a run's MLflow folder, loaded afresh, on its validation rows."""
    folder, arrow = run.folder / "loss", Path(run.upstream[PREPROCESS]) / "validation.arrow"
    loaded = child("tiny_phi3:report_loss", {"model": str(run.mlflow), "arrow": str(arrow)}, folder)
    assert loaded.wait() == 0, (folder / "log.txt").read_text()
    return json.loads((folder / "loss.json").read_text())


def test_the_log_says_that_a_small_model_gains_nothing_from_sixteen_bits(finetune):  # noqa: F811
    log = finetune(machine(half="bf16"), precision=16, max_steps=1).log(FINETUNE)
    assert "since a model of 0.0 million parameters gains nothing from bf16" in log
