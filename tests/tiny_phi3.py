"""Children's entries that make what the tests need of heavy libraries; pytest need not import them."""

import json
from pathlib import Path

import mlflow
import torch
from tiny_chats import chats
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    GenerationConfig,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    pipeline,
    set_seed,
)
from trl.chat_template_utils import phi3_chat_template

SPECIAL = ["<unk>", "<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 256,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def make_checkpoint(specification: dict) -> None:
    """Write a random Phi-3 checkpoint of some 40 000 parameters to `folder`, with `config` on top of TINY."""
    folder = Path(specification["folder"])
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = Phi3Config(**{"vocab_size": len(tokenizer), **TINY, **specification.get("config", {})})
    model = Phi3ForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[2, 5], pad_token_id=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tokenizer(
    template: str = phi3_chat_template, own: list[str] = SPECIAL[3:], pad_token: str | None = "<|endoftext|>"
) -> PreTrainedTokenizerFast:
    """Return a tokenizer of 400 tokens and `own`, trained on what animals say."""
    bytewise = ByteLevelBPETokenizer()
    texts = [turn["content"] for chat in chats(50) for turn in chat["messages"]]
    bytewise.train_from_iterator(
        texts, vocab_size=400, special_tokens=[*SPECIAL[:3], *own], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bytewise._tokenizer,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token=pad_token,
        unk_token="<unk>",
        additional_special_tokens=own,
        chat_template=template,
        model_max_length=256,
    )


def make_runs(specification: dict) -> None:
    """Create a pipeline's two runs in the environment's tracking store; write their ids to `runs.json`."""
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("animals")
    runs = {
        name: client.create_run(experiment).info.run_id for name in ("MLFLOW_RUN_ID", "AZUREML_ROOT_RUN_ID")
    }
    Path("runs.json").write_text(json.dumps(runs))


def report_tokens(specification: dict) -> None:
    """Write what the preprocess step kept: the rows' texts, and those of their labels."""
    from datasets import Dataset

    tokenizer = make_tokenizer()
    rows = Dataset.from_file(specification["arrow"])
    texts = [tokenizer.decode(row["input_ids"]) for row in rows]
    learned = [tokenizer.decode([token for token in row["labels"] if token >= 0]) for row in rows]
    lengths = [len(row["input_ids"]) for row in rows]
    Path("rows.json").write_text(json.dumps({"texts": texts, "learned": learned, "lengths": lengths}))


def report_loss(specification: dict) -> None:
    """Write the loss of an MLflow model folder, loaded afresh, on tokenised rows, and what it computes in."""
    from datasets import Dataset

    model = mlflow.transformers.load_model(specification["model"], return_type="components")["model"].eval()
    total = count = 0
    with torch.inference_mode():
        for row in Dataset.from_file(specification["arrow"]):
            labels = torch.tensor(row["labels"][1:])
            logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1].float()
            total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            count += int((labels != -100).sum())
    Path("loss.json").write_text(json.dumps(total / count))


def report_answers(specification: dict) -> None:
    """Write the signature of an MLflow model folder, and what it and its checkpoint answer to a question."""
    asked = "<|user|>\nWhat does the cow say?<|end|>\n<|assistant|>\n"
    model = mlflow.pyfunc.load_model(specification["model"])
    checkpoint = pipeline("text-generation", specification["checkpoint"])
    set_seed(1)
    answers = model.predict(asked)
    set_seed(1)
    expected = checkpoint(asked)[0]["generated_text"]
    Path("answers.json").write_text(json.dumps([model.metadata.signature, answers, expected]))
