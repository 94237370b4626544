"""What the processor chooses, tried on whatever processor there is."""

import json
from pathlib import Path

import pytest
from test_chat_completion import CONVERT, FINETUNE, PREPROCESS, base, finetune, prepared, rows  # noqa: F401
from tiny_run import child, machine

FP32, BF16 = {"half": None}, {"half": "bf16", "half_pays_from": 0}
GPUS = {"gpus": 2}  # whose branch is trl's own loss
KINDS = [
    (played, lora, processes) for played in (FP32, BF16) for lora in ("true", "false") for processes in (1, 2)
]


@pytest.mark.parametrize(
    ("played", "lora", "processes"), [*KINDS, (FP32 | GPUS, "false", 2), (BF16 | GPUS, "true", 1)]
)
def test_what_is_evaluated_is_what_is_served(finetune, played, lora, processes):  # noqa: F811
    run = finetune(
        environment=machine(cores=2, **played),
        precision=16,
        apply_lora=lora,
        number_of_gpu_to_use_finetuning=processes,
        max_steps=6,
    )
    assert run.code == 0, run.log(FINETUNE)
    assert f"computing in {played['half'] or 'fp32'}" in run.log(FINETUNE)
    assert f"{processes} run on {'GPUs' if 'gpus' in played else '2 CPU cores'}" in run.log(FINETUNE)
    assert run.step(CONVERT).wait() == 0, run.log(CONVERT)
    reported = [log["eval_loss"] for log in run.history() if "eval_loss" in log]
    assert reported[-1] == pytest.approx(loss_of(run), rel=0.01)


def loss_of(run) -> float:
    """Return the loss of a run's MLflow folder, loaded afresh, on its validation rows."""
    folder, arrow = run.folder / "loss", Path(run.upstream[PREPROCESS]) / "validation.arrow"
    loaded = child("tiny_phi3:report_loss", {"model": str(run.mlflow), "arrow": str(arrow)}, folder)
    assert loaded.wait() == 0, (folder / "log.txt").read_text()
    return json.loads((folder / "loss.json").read_text())


@pytest.mark.parametrize(
    ("played", "words"),
    [
        (FP32, "computing in fp32, since this CPU has no bf16 instructions"),
        ({"half": "bf16"}, "since a model of 0.0 million parameters gains nothing from bf16"),
    ],
)
def test_the_log_says_why_sixteen_bits_are_not_used(finetune, played, words):  # noqa: F811
    assert words in finetune(environment=machine(**played), precision=16, max_steps=1).log(FINETUNE)
