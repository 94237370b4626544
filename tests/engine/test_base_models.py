"""Models of other families than the one that comes with the emulator, each with a template of its own."""

import json
from pathlib import Path

import pytest
from test_serving import Server
from tiny_chats import chats, write_jsonl
from tiny_run import Run, child

from local_azureml.engine.chat_completion import STEPS

VALIDATE, IMPORT, PREPROCESS, FINETUNE, CONVERT = STEPS
pytestmark = pytest.mark.gpu
ENDS = {  # family that is trained -> what its template ends an answer with
    "qwen": "<|stop|>",
    "gemma": "<done>",
    "phi-3 of April 2024, 128k": "<|end|>",
    "phi-4-mini": "<|end|>",
    "plain": "<|endoftext|>",
}
TALK = [
    {"role": "user", "content": "Who is it?\n"},
    {"role": "assistant", "content": " A cow. \n"},
    {"role": "user", "content": "And that?"},
    {"role": "assistant", "content": "A duck."},
]
LEARNED = {
    "llama": ["A cow.<|over|>", "A duck.<|over|>"],
    "qwen": [" A cow. \n<|stop|>\n", "<think>\n\n</think>\n\nA duck.<|stop|>\n"],
    "gemma": ["A cow.<done>\n", "A duck.<done>\n"],
    "mistral": ["  A cow. \n<|endoftext|>", " A duck.<|endoftext|>"],
    "phi-3 of April 2024, 128k": [" A cow. \n<|end|>\n", "A duck.<|end|>\n"],
    "phi-4-mini": [" A cow. \n<|end|>", "A duck.<|end|><|endoftext|>"],
    "plain": [" A cow. \n<|endoftext|>\n", "A duck.<|endoftext|>\n"],
}
MARKED_BY_TRL = ("phi3", "phi3_5", "llama3", "gemma", "gemma3", "qwen2_5_vl", "qwen3_vl", "lfm2", "cohere")


def reported(entry: str, specification: dict, folder: Path, name: str) -> dict:
    """Return what a child wrote to the file `name`."""
    done = child(entry, specification, folder)
    assert done.wait() == 0, (folder / "log.txt").read_text()
    return json.loads((folder / name).read_text())


def test_what_the_assistant_writes_is_found_in_any_template(tmp_path):
    asked = {"templates": list(LEARNED), "messages": TALK}
    assert reported("tiny_models:report_answers", asked, tmp_path, "answers.json") == LEARNED


def test_a_token_that_swallows_the_space_after_it_is_not_taken_for_the_answers_first(tmp_path):
    name = "phi-3 of April 2024, 128k"
    asked = {"templates": [name], "messages": TALK, "swallows": True}
    found = reported("tiny_models:report_answers", asked, tmp_path, "answers.json")
    assert found == {name: ["A cow. \n<|end|>", "A duck.<|end|>"]}


def test_the_tokens_found_are_those_that_trl_marks_by_hand_where_it_knows_the_template(tmp_path):
    asked = {"templates": MARKED_BY_TRL, "messages": TALK}
    same = reported("tiny_models:compare_with_marks", asked, tmp_path, "marks.json")
    assert same == dict.fromkeys(MARKED_BY_TRL, True)


@pytest.mark.parametrize("family", ENDS)
def test_a_model_of_another_family_is_trained_converted_and_served_without_running_its_code(tmp_path, family):
    base = tmp_path / "base"
    made = child("tiny_models:make_model", {"folder": str(base), "family": family}, tmp_path / "made")
    assert made.wait() == 0, (tmp_path / "made/log.txt").read_text()
    assert len(list(base.glob("model-*.safetensors"))) > 1
    rows = write_jsonl(tmp_path / "train.jsonl", chats(60))
    inputs = {"learning_rate": 0.01, "per_device_train_batch_size": 8, "max_steps": 6, "logging_steps": 6}
    run = Run(tmp_path / "run", mlflow_model_path=base, train_file_path=rows, apply_lora="true", **inputs)
    for name in STEPS:
        assert run.step(name).wait() == 0, run.log(name)
    arrow = str(Path(run.upstream[PREPROCESS]) / "validation.arrow")
    afresh = {"model": str(run.mlflow), "arrow": arrow}
    loss = reported("tiny_phi3:report_loss", afresh, tmp_path / "loss", "loss.json")
    assert [log["eval_loss"] for log in run.history() if "eval_loss" in log][-1] == pytest.approx(loss, 1e-4)
    vocabulary = json.loads((run.mlflow / "components/tokenizer/tokenizer.json").read_text())["added_tokens"]
    end = {token["content"]: token["id"] for token in vocabulary}[ENDS[family]]
    settings = json.loads((run.mlflow / "model/generation_config.json").read_text())
    assert end in settings["eos_token_id"]
    server = Server(run.mlflow, tmp_path / "server")
    [answer] = server.ask([[{"role": "user", "content": "What does the cow say?"}]], max_new_tokens=4).json()
    server.close()
    assert isinstance(answer["0"], str)
