"""Children's entries that make tiny random models of many families, with templates that do what theirs do."""

import json
from pathlib import Path

import torch
from tiny_phi3 import TINY, make_tokenizer
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from trl import chat_template_utils

from local_azureml.engine.chat_completion.turns import Turns

GROUPED = TINY | {"num_key_value_heads": 2, "pad_token_id": None}
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
        {"head_dim": 8, "sliding_window": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
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
    """Write a random checkpoint of a family to `folder`, its tokenizer without a pad token."""
    kind, changes, template, own = FAMILIES[specification["family"]]
    folder = Path(specification["folder"])
    tokenizer = make_tokenizer(template, own, pad_token=None)
    torch.manual_seed(0)
    written = {"model_type": kind, "vocab_size": len(tokenizer), **GROUPED, **changes}
    su = written.get("rope_scaling", {}).get("type") == "su"  # which transformers reads in our way alone
    readable = written | ({"rope_scaling": LONG | {"type": "longrope"}} if su else {})
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind].from_dict(readable))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if su:
        (folder / "config.json").write_text(json.dumps(written | {"architectures": [type(model).__name__]}))


def report_answers(specification: dict) -> None:
    """Write to `answers.json` what each template of `templates` lets the assistant write in `messages`."""
    found = {}
    for name in specification["templates"]:
        _, _, template, own = FAMILIES[name]
        found[name] = _learned(make_tokenizer(template, own), specification["messages"])
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
