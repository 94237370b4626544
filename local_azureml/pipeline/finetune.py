"""chat_completion_finetune: trains with trl's SFTTrainer, in as many processes as the machine has room for."""

import importlib.util
import json
import os
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers import AutoTokenizer, EarlyStoppingCallback, Phi3ForCausalLM, PrinterCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from .. import processes
from ..processes import UserError
from .batches import Collator, EpochLoader, LengthBatches
from .inputs import typed
from .machine import GIB, Layout, available, layout, plan, precision
from .model_import import link_files
from .watching import Fault, Guard, Lines, Tracker

ADAPTER = "adapter"  # the folder of LoRA weights that are not merged
FAILED = "failed.json"  # how a worker tells this step why it failed


def run(specification: dict) -> None:
    """Train, and leave the checkpoint in the output pytorch_model_folder."""
    if "finetune-failed" in specification["faults"]:
        raise UserError("the fault finetune-failed is switched on")
    values = typed(specification["inputs"])
    running = layout(values)
    print(f"processes: {running}", flush=True)
    deepspeed = deepspeed_config(values, running)
    if running.processes == 1 and not deepspeed:
        train(specification, running, None)
    else:
        _launch(specification, running, deepspeed)


def deepspeed_config(values: dict, running: Layout) -> dict | None:
    """Return DeepSpeed's configuration where it is asked for and can be used; say so where it can't."""
    if not values["apply_deepspeed"]:
        return None
    given = _read_deepspeed(values["deepspeed"]) if "deepspeed" in values else None
    if not running.gpus or not importlib.util.find_spec("deepspeed"):
        why = "it is not installed" if running.gpus else "there is no GPU"
        print(f"DeepSpeed is left out: {why}", flush=True)
        return None
    automatic = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    return given or {
        "zero_optimization": {
            "stage": int(values["deepspeed_stage"]),
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        **dict.fromkeys(automatic, "auto"),
    }


def _read_deepspeed(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"deepspeed: {path.name} is no JSON file: {error}") from error


def _launch(specification: dict, running: Layout, deepspeed: dict | None) -> None:
    """Run `train` in processes as torchrun does, forked from the warm server."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=running.processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        start_method="forkserver",
        run_id="finetune",
        max_restarts=0,
    )
    try:
        elastic_launch(config, _work)(specification, running, deepspeed, processes.here)
    except ChildFailedError as error:
        if Path(FAILED).exists():
            raise UserError(json.loads(Path(FAILED).read_text())) from error
        raise


def _work(specification: dict, running: Layout, deepspeed: dict | None, place: processes.Place) -> None:
    place.enter()
    os.environ["OMP_NUM_THREADS"] = str(running.threads)
    try:
        train(specification, running, deepspeed)
    except UserError as error:
        Path(FAILED).write_text(json.dumps(str(error)))
        raise


def train(specification: dict, running: Layout, deepspeed: dict | None) -> None:
    """Train one process's share; the first process saves the result."""
    values = typed(specification["inputs"])
    torch.set_num_threads(running.threads)
    base = Path(specification["upstream"]["chat_completion_model_import"])
    tokens = Path(specification["upstream"]["chat_completion_datapreprocess"])
    output = Path(specification["outputs"]["pytorch_model_folder"])
    try:
        trainer = build(values, running, deepspeed, base, tokens, output, specification["faults"])
        trainer.train(resume_from_checkpoint=_checkpoint(values, base, output))
        if trainer.is_world_process_zero():
            save(trainer, values, base, output)
        trainer.tracker.close()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory while training with {available() / GIB:.1f} GiB free: lower"
            " per_device_train_batch_size or max_seq_length, or set apply_lora"
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Say whether `error` is PyTorch's or Python's way of having no memory left."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def build(
    values: dict, running: Layout, deepspeed: dict | None, base: Path, tokens: Path, output: Path, faults: dict
) -> "Trainer":
    """Return the trainer, its model loaded and its rows at hand."""
    config = json.loads((base / "config.json").read_text())
    need = plan(config, base, values, available())
    kind = precision(values)
    if kind == "fp32" and values["precision"] == "16":
        print("precision 16: this CPU has no bf16 instructions, so it computes in 32 bits", flush=True)
    print(f"{need}, {available() / GIB:.2f} GiB free; computing in {kind}", flush=True)
    arguments = training_arguments(values, running, deepspeed, output, need.checkpointing, kind)
    set_seed(values["seed"])
    model = Phi3ForCausalLM.from_pretrained(
        base,
        dtype=torch.bfloat16 if values["apply_lora"] and kind == "bf16" else torch.float32,
        ignore_mismatched_sizes=values["ignore_mismatched_sizes"],
        use_safetensors=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    train_rows = Dataset.from_file(str(tokens / "train.arrow"))
    validation = Dataset.from_file(str(tokens / "validation.arrow"))
    return Trainer(
        model,
        arguments,
        running,
        train_rows,
        by_length(validation) if values["evaluation_strategy"] != "disable" else None,
        tokenizer,
        values,
        faults,
    )


def by_length(rows: Dataset) -> Dataset:
    """Return `rows` sorted by length, so that evaluation pads little."""
    lengths = rows["length"]
    return rows.select(sorted(range(len(rows)), key=lengths.__getitem__))


def training_arguments(
    values: dict, running: Layout, deepspeed: dict | None, output: Path, checkpointing: bool, kind: str
) -> SFTConfig:
    """Return the component's inputs as the Trainer's arguments."""
    evaluates = values["evaluation_strategy"]
    every = evaluation_steps(values)
    return SFTConfig(
        output_dir=str(output),
        num_train_epochs=values["num_train_epochs"],
        max_steps=values["max_steps"],
        per_device_train_batch_size=values["per_device_train_batch_size"],
        per_device_eval_batch_size=values["per_device_eval_batch_size"],
        auto_find_batch_size=values["auto_find_batch_size"],
        gradient_accumulation_steps=values["gradient_accumulation_steps"] * running.repeats,
        eval_accumulation_steps=positive(values["eval_accumulation_steps"]),
        optim=values["optim"],
        learning_rate=values["learning_rate"],
        lr_scheduler_type=values["lr_scheduler_type"],
        warmup_steps=values["warmup_steps"],
        weight_decay=values["weight_decay"],
        adam_beta1=values["adam_beta1"],
        adam_beta2=values["adam_beta2"],
        adam_epsilon=values["adam_epsilon"],
        max_grad_norm=values["max_grad_norm"],
        bf16=kind == "bf16",
        fp16=kind == "fp16",
        seed=values["seed"],
        full_determinism=values["enable_full_determinism"],
        dataloader_num_workers=values["dataloader_num_workers"],
        dataloader_pin_memory=running.gpus,
        eval_strategy="no" if evaluates == "disable" else evaluates,
        eval_steps=every,
        save_strategy="epoch" if evaluates == "disable" else evaluates,
        save_steps=every,
        save_total_limit=positive(values["save_total_limit"]),
        load_best_model_at_end=evaluates != "disable",
        metric_for_best_model=values["metric_for_best_model"],
        greater_is_better=False,
        logging_strategy=values["logging_strategy"],
        logging_steps=values["logging_steps"],
        logging_nan_inf_filter=False,
        activation_checkpointing=checkpointing,
        use_cpu=not running.gpus,
        deepspeed=deepspeed,
        ddp_backend=("nccl" if running.gpus else "gloo") if running.processes > 1 else None,
        ddp_find_unused_parameters=False if running.processes > 1 else None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )


def evaluation_steps(values: dict) -> float:
    """Return the steps between evaluations, or the share of the whole run that lies between two."""
    share = values["evaluation_steps_interval"]
    return share / values["num_train_epochs"] if share else values["eval_steps"]


def positive(number: int) -> int | None:
    """Return `number`, or None where the component writes -1 for no limit."""
    return number if number > 0 else None


class Trainer(SFTTrainer):
    """trl's trainer on rows that are tokens already, in batches of about one length."""

    def __init__(self, model, arguments, running: Layout, train, validation, tokenizer, values: dict, faults: dict):
        self.running = running
        self.tracker = Tracker()
        callbacks = [Guard(), Lines(sum(train["length"])), self.tracker, Fault(faults), *early_stopping(values)]
        super().__init__(
            model,
            arguments,
            Collator(tokenizer.pad_token_id),
            train,
            validation,
            tokenizer,
            callbacks=callbacks,
            peft_config=adapters(values),
        )
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> EpochLoader:
        """Return this process's share of the training rows."""
        batches = LengthBatches(
            self.train_dataset["length"],
            self._train_batch_size,
            self.args.gradient_accumulation_steps,
            self.running.processes,
            self.args.process_index,
            self.args.seed,
        )
        return EpochLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the loss; on a CPU the head is applied to no token but those that carry loss."""
        if self.running.gpus:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # rows are padded at their end, where a causal model's other tokens never look: no mask is needed
        outputs = model(inputs["input_ids"], output_hidden_states=True, logits_to_keep=1, use_cache=False)
        labels = inputs["labels"][:, 1:]
        carry = labels != -100
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        logits = head(outputs.hidden_states[-1][:, :-1][carry]).float()
        loss = torch.nn.functional.cross_entropy(logits, labels[carry], reduction="sum")
        return loss / (carry.sum() if num_items_in_batch is None else num_items_in_batch) * self.args.world_size

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Return a loss whose mean over rows is the mean over all the tokens of the validation set."""
        inputs = self._prepare_inputs(inputs)
        tokens = len(inputs["labels"]) * self.tokens_a_row() * self.args.world_size
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs, num_items_in_batch=tokens), None, None

    def tokens_a_row(self) -> float:
        """Return how many tokens of a validation row carry loss, on average."""
        if not hasattr(self, "_tokens_a_row"):
            labels = self.eval_dataset.with_format("numpy")["labels"]
            self._tokens_a_row = sum(int((row[1:] != -100).sum()) for row in labels) / len(labels)
        return self._tokens_a_row


def adapters(values: dict) -> LoraConfig | None:
    """Return LoRA on every linear layer, if it is asked for."""
    if not values["apply_lora"]:
        return None
    return LoraConfig(
        r=values["lora_r"],
        lora_alpha=values["lora_alpha"],
        lora_dropout=values["lora_dropout"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def early_stopping(values: dict) -> list[EarlyStoppingCallback]:
    """Return the callback that stops a run which no longer improves, if it is asked for."""
    if not values["apply_early_stopping"]:
        return []
    return [EarlyStoppingCallback(values["early_stopping_patience"], values["early_stopping_threshold"])]


def _checkpoint(values: dict, base: Path, output: Path) -> str | None:
    """Return the newest checkpoint to go on from, if that is asked for and there is one."""
    if not values["resume_from_checkpoint"]:
        return None
    found = (get_last_checkpoint(str(output)) if output.exists() else None) or get_last_checkpoint(str(base))
    print(f"going on from {Path(found).name}" if found else "no checkpoint to go on from: starting at step 0", flush=True)
    return found


def save(trainer: Trainer, values: dict, base: Path, output: Path) -> None:
    """Write the trained checkpoint; LoRA merged into it, or the base with the adapter in a folder beside it."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if values["apply_lora"] and not values["merge_lora_weights"]:
        model.peft_config["default"].base_model_name_or_path = ".."
        model.save_pretrained(output / ADAPTER)
    else:
        model = model.merge_and_unload() if values["apply_lora"] else model
        stop_at_turn_end(model, trainer.processing_class)
        model.save_pretrained(output)
    link_files(base, output)
    print(f"saved the model in {output.name}", flush=True)


def stop_at_turn_end(model, tokenizer) -> None:
    """Let generation stop at the end of the assistant's turn, not only at the end of the text."""
    known = model.generation_config.eos_token_id
    ends = set(known if isinstance(known, list) else [known])
    turn_end = tokenizer.convert_tokens_to_ids("<|end|>")
    model.generation_config.eos_token_id = sorted((ends | {tokenizer.eos_token_id, turn_end}) - {None})
