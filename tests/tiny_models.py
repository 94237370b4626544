"""Children's entries that make tiny random models of many families, with templates that do what theirs do."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from tiny_phi3 import TINY, make_tokenizer
from tokenizers import AddedToken
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from trl import chat_template_utils

from local_azureml.engine.chat_completion import finetune, machine, memory
from local_azureml.engine.chat_completion.attention import WITHIN_ROWS
from local_azureml.engine.chat_completion.packing import FlatteningCollator
from local_azureml.engine.chat_completion.turns import Turns

GROUPED = TINY | {"num_key_value_heads": 2, "pad_token_id": None}
WIDER = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "rope_scaling": None,
}  # so that what grows with the rank counts for little
ROWS = [200, 140]  # tokens of a batch
LONG = {
    "short_factor": [1.0] * 2,
    "long_factor": [2.0] * 2,
}  # a number for each turned pair of a head's eight

# A date in the system message, contents trimmed.
LLAMA = """\
{{ bos_token }}<|head|>system<|tail|>\n\nToday is {{ strftime_now('%d %B %Y') }}.
{%- if messages[0].role == 'system' %} {{ messages[0].content | trim }}{% endif %}<|over|>
{%- for message in messages if message.role != 'system' -%}
<|head|>{{ message.role }}<|tail|>\n\n{{ message.content | trim }}<|over|>
{%- endfor %}{% if add_generation_prompt %}<|head|>assistant<|tail|>\n\n{% endif %}"""
# A system message where there is none, and room for thoughts before the last answer alone.
QWEN = """\
{% if messages[0].role != 'system' %}<|start|>system\nYou help.<|stop|>\n{% endif %}
{%- for message in messages %}<|start|>{{ message.role }}\n
{%- if loop.last and message.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}
{{- message.content }}<|stop|>\n{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant\n{% endif %}"""
# No system message allowed, another name for the assistant, contents trimmed.
GEMMA = """\
{{ bos_token }}{% for message in messages %}
{%- if message.role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}<turn>
{{- 'model' if message.role == 'assistant' else 'user' }}\n{{ message.content | trim }}<done>\n{% endfor %}
{%- if add_generation_prompt %}<turn>model\n{% endif %}"""
# The system message in the first question, a space before each answer, no words that ask for one.
MISTRAL = """\
{{ bos_token }}{% set system = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}
{%- for message in messages if message.role != 'system' %}{% if message.role == 'user' -%}
[ASK] {{ system if loop.first else '' }}{{ message.content }} [/ASK]{% else %} {{ message.content }}
{{- eos_token }}{% endif %}{% endfor %}"""
# The words that ask for an answer belong to the question, as with Phi-3 in April 2024 and Phi-3-medium.
PHI_3_OF_APRIL = """\
{{ bos_token }}{% for message in messages %}{% if message.role == 'user' -%}
<|user|>\n{{ message.content }}<|end|>\n<|assistant|>\n{% elif message.role == 'assistant' -%}
{{ message.content }}<|end|>\n{% endif %}{% endfor %}"""
# No line feeds, and the end of the text where no answer is asked for, as with Phi-4-mini.
PHI_4_MINI = """\
{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}
{{- '<|assistant|>' if add_generation_prompt else eos_token }}"""
# No tokens of its own but the end of the text.
PLAIN = """\
{% for message in messages %}{{ message.role | upper }}: {{ message.content }}
{{- eos_token if message.role == 'assistant' }}\n{% endfor %}
{%- if add_generation_prompt %}ASSISTANT: {% endif %}"""

FAMILIES = {  # name -> (type of model, what differs from GROUPED, template, tokens of its own)
    "llama": ("llama", {"tie_word_embeddings": True}, LLAMA, ["<|head|>", "<|tail|>", "<|over|>"]),
    "qwen": ("qwen3", {"head_dim": 16}, QWEN, ["<|start|>", "<|stop|>", "<think>", "</think>"]),
    "gemma": (
        "gemma2",
        {"head_dim": 8, "sliding_window": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
        | {"dtype": "bfloat16"},
        GEMMA,
        ["<turn>", "<done>"],
    ),
    "mistral": ("mistral", {"sliding_window": 24}, MISTRAL, ["[ASK]", "[/ASK]"]),
    "phi-3 of April 2024, 128k": (
        "phi3",
        {
            "rope_scaling": LONG | {"type": "su"},
            "partial_rotary_factor": 0.5,
            "max_position_embeddings": 1024,
        },
        PHI_3_OF_APRIL,
        ["<|user|>", "<|end|>", "<|assistant|>"],
    ),
    "phi-4-mini": (
        "phi3",
        {
            "tie_word_embeddings": True,
            "rope_scaling": LONG | {"type": "longrope"},
            "partial_rotary_factor": 0.5,
        },
        PHI_4_MINI,
        ["<|system|>", "<|user|>", "<|end|>", "<|assistant|>"],
    ),
    "plain": ("gpt_neox", {}, PLAIN, []),
}


def make_model(specification: dict) -> None:
    """Write a random checkpoint to `folder`: in shards, with code beside it, without a pad token."""
    kind, changes, template, own = FAMILIES[specification["family"]]
    folder = Path(specification["folder"])
    tokenizer = make_tokenizer(template, own, pad_token=None)
    torch.manual_seed(0)
    code = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    written = {"model_type": kind, "vocab_size": len(tokenizer), "auto_map": code, **GROUPED, **changes}
    su = written.get("rope_scaling", {}).get("type") == "su"  # which transformers reads in our way alone
    readable = written | ({"rope_scaling": LONG | {"type": "longrope"}} if su else {})
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind].from_dict(readable))
    model.save_pretrained(folder, max_shard_size="30KB")
    (folder / "own.py").write_text("raise SystemExit('code of the model was run')")
    tokenizer.save_pretrained(folder)
    if su:
        (folder / "config.json").write_text(json.dumps(written | {"architectures": [type(model).__name__]}))


def report_answers(specification: dict) -> None:
    """Write to `answers.json` what each template of `templates` lets the assistant write in `messages`.

    With `swallows`, the templates' own tokens take the space after them along, as those of Phi-3 do.
    """
    found = {}
    for name in specification["templates"]:
        _, _, template, own = FAMILIES[name]
        tokenizer = make_tokenizer(template, own)
        if specification.get("swallows"):
            tokenizer.add_tokens([AddedToken(token, rstrip=True, normalized=False) for token in own])
        found[name] = _learned(tokenizer, specification["messages"])
    Path("answers.json").write_text(json.dumps(found))


def _learned(tokenizer, messages: list[dict]) -> list[str]:
    """Return the answers that a model learns, each with its end."""
    [(ids, spoken)] = Turns(tokenizer).encode([messages])
    texts, before = [], False
    for token, own in zip(ids, spoken, strict=True):
        if own:
            texts = [*texts[:-1], [*texts[-1], token]] if before else [*texts, [token]]
        before = own
    return [tokenizer.decode(text) for text in texts]


def compare_with_marks(specification: dict) -> None:
    """Write to `marks.json`, for each template that trl marked by hand, whether the same tokens are found."""
    same = {}
    for name in specification["templates"]:
        plain, marked = (
            getattr(chat_template_utils, f"{name}{part}_chat_template") for part in ("", "_training")
        )
        tokenizer = make_tokenizer(plain)
        messages = specification["messages"]
        [(ids, spoken)] = Turns(tokenizer).encode([messages])
        expected = tokenizer.apply_chat_template(
            messages, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True
        )
        found = (ids.tolist(), spoken.astype(int).tolist())
        same[name] = found == (expected["input_ids"], expected["assistant_masks"])
    Path("marks.json").write_text(json.dumps(same))


def compare_with_plain_training(specification: dict) -> None:
    """Write to `compared.json` loss and gradients of a batch, next to those of the same rows, padded.

    The gradients as the length of their difference, over their own length.
    """
    task = finetune.Task.of(specification)
    trainer = finetune.build(task, machine.layout(task.values), None)
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn_like(parameter) * 0.02)  # adapters begin with zeros, without gradients
    model = trainer.accelerator.prepare(trainer.model).eval()
    batch = next(iter(trainer.get_train_dataloader()))
    rows = [
        {name: part.tolist() for name, part in zip(("input_ids", "labels"), parts, strict=True)}
        for parts in zip(
            *(batch[name][0].split(batch["row_lengths"]) for name in ("input_ids", "labels")), strict=True
        )
    ]
    tokens = int((batch["labels"] != -100).sum())
    with disable_input_dtype_casting(trainer.model):
        ours = trainer.compute_loss(model, batch, num_items_in_batch=tokens)
    gradients = torch.autograd.grad(ours, trained)
    trainer.model.config.pad_token_id = 0
    trainer.accelerator.unwrap_model(model).set_attn_implementation("sdpa")
    padded = DataCollatorForSeq2Seq(trainer.processing_class)(rows)
    plain = model(**padded).loss
    expected = torch.autograd.grad(plain, trained)
    far = sum((a.float() - b.float()).square().sum() for a, b in zip(gradients, expected, strict=True)).sqrt()
    long = sum(gradient.float().square().sum() for gradient in expected).sqrt()
    Path("compared.json").write_text(json.dumps([ours.item(), plain.item(), (far / long).item()]))


def report_memory(specification: dict) -> None:
    """Write to `memory.json`, for families and ways of training, the bytes planned over those really kept."""
    ratios = {}
    for family, (kind, changes, _, _) in FAMILIES.items():
        config = CONFIG_MAPPING[kind].from_dict({"vocab_size": 400, **GROUPED, **changes, **WIDER})
        for lora, half in ((True, True), (True, False), (False, False)):
            planned = memory.kept(config, ROWS, "bf16" if half else "fp32", lora)
            ratios[f"{family}, {lora=}, {half=}"] = planned / _really_kept(config, lora, half)
    Path("memory.json").write_text(json.dumps(ratios))


def _really_kept(config, lora: bool, half: bool) -> int:
    """Return the bytes that autograd keeps of a step, and the gradients of its logits."""
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=WITHIN_ROWS, dtype=torch.bfloat16 if lora and half else torch.float32
    ).train()
    if lora:
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    found = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    batch = FlatteningCollator(0)([{"input_ids": [5] * rows, "labels": [5] * rows} for rows in ROWS])
    labels = batch.pop("labels")[0]
    with saved_tensors_hooks(keep, lambda tensor: tensor), disable_input_dtype_casting(model):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = model(**batch, use_cache=False).logits[0].float()
        torch.nn.functional.cross_entropy(logits, labels)
    return sum(part.nbytes() for key, part in found.items() if key not in own) + 2 * logits.nbytes
