"""trl's trainer, set up from the component's inputs."""

import math
from functools import cached_property
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from peft.helpers import disable_input_dtype_casting
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from local_azureml.engine.chat_completion.callbacks import (
    LogCallback,
    MlflowCallback,
    NaNCallback,
    OutOfMemoryCallback,
)
from local_azureml.engine.chat_completion.machine import Layout
from local_azureml.engine.chat_completion.packing import (
    DistributedBatchSampler,
    EpochLoader,
    FlatteningCollator,
)

AS_THEY_ARE = (  # inputs that the Trainer has by the same names
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("auto_find_batch_size", "optim", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed", "dataloader_num_workers"),
    *("eval_steps", "metric_for_best_model", "logging_strategy", "logging_steps"),
)


class Arguments(SFTConfig):
    """What the Trainer is told; a process has one GPU, for a batch of rows end to end can't be split."""

    n_gpu = 1


def training_arguments(
    values: dict, running: Layout, deepspeed: dict | None, output: Path, checkpointing: bool, kind: str
) -> Arguments:
    """Return the component's inputs as the Trainer's arguments."""
    evaluates = values["evaluation_strategy"]
    return Arguments(
        output_dir=str(output),
        **{name: values[name] for name in AS_THEY_ARE},
        gradient_accumulation_steps=values["gradient_accumulation_steps"] * running.repeats,
        eval_accumulation_steps=positive(values["eval_accumulation_steps"]),
        bf16=kind == "bf16",
        fp16=kind == "fp16",
        full_determinism=values["enable_full_determinism"],
        dataloader_pin_memory=running.gpus,
        eval_strategy="no" if evaluates == "disable" else evaluates,
        save_strategy="epoch" if evaluates == "disable" else evaluates,
        save_steps=values["eval_steps"],
        save_total_limit=positive(values["save_total_limit"]),
        load_best_model_at_end=evaluates != "disable",
        greater_is_better=False,
        logging_nan_inf_filter=False,
        gradient_checkpointing=checkpointing,  # the one name that all of transformers 5 takes
        use_cpu=not running.gpus,
        deepspeed=deepspeed,
        ddp_backend=running.backend if running.processes > 1 else None,
        ddp_find_unused_parameters=False if running.processes > 1 else None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )


def positive(number: int) -> int | None:
    """Return `number`, or None where the component writes -1 for no limit."""
    return number if number > 0 else None


class EveryShare(TrainerCallback):
    """Evaluates and saves each time that a share of an epoch is done, in whole steps."""

    def __init__(self, share: float):
        self.share = share

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        epoch = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)  # steps
        every = max(1, math.ceil(round(self.share * epoch, 6)))  # 0.07 * 100 is a little more than 7
        args.eval_steps = args.save_steps = state.eval_steps = state.save_steps = every


class Trainer(SFTTrainer):
    """trl's trainer on rows that are tokens already, laid end to end."""

    def __init__(self, model, arguments, train, validation, tokenizer, values: dict, faults: dict):
        self.tracker = MlflowCallback()
        callbacks = [
            NaNCallback(),
            LogCallback(sum(train["length"])),
            *evaluation_steps(values),  # before the tracker, which notes them
            self.tracker,
            OutOfMemoryCallback(faults),
            *early_stopping(values),
        ]
        super().__init__(
            model,
            arguments,
            FlatteningCollator(tokenizer.pad_token_id or 0),
            train,
            validation,
            tokenizer,
            callbacks=callbacks,
            peft_config=adapters(values),
        )
        self.remove_callback(PrinterCallback)

    def create_model_card(self, *args, **kwargs):
        """Write none: trl's would name this machine's paths."""

    def train(self, *args, **kwargs):
        """Train; adapters leave it to autocast to convert what a layer is given."""
        with disable_input_dtype_casting(self.model):
            return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> EpochLoader:
        """Return this process's share of the training rows, in batches."""
        return self._loader(self.train_dataset, self._train_batch_size, self.args.gradient_accumulation_steps)

    def get_eval_dataloader(self, eval_dataset=None) -> EpochLoader:
        """Return this process's share of the validation rows, in batches."""
        return self._loader(self.eval_dataset, self.args.eval_batch_size, 1)

    def _loader(self, rows: Dataset, size: int, accumulation: int) -> EpochLoader:
        processes, rank = self.args.world_size, self.args.process_index
        return EpochLoader(
            rows,
            batch_sampler=DistributedBatchSampler(
                rows["length"], size, accumulation, processes, rank, self.args.seed
            ),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the loss; the head is applied to no token but those that carry loss."""
        labels = inputs.pop("labels")[0, 1:]
        carry = (labels != -100).nonzero()[:, 0]
        logits = model(**inputs, logits_to_keep=carry, use_cache=False).logits[0].float()
        loss = torch.nn.functional.cross_entropy(logits, labels[carry], reduction="sum")
        tokens = len(carry) if num_items_in_batch is None else num_items_in_batch
        return loss / tokens * self.args.world_size

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Return a loss whose mean over the batches is the mean over all tokens of the validation set."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs, num_items_in_batch=self._tokens_a_batch), None, None

    @cached_property
    def _tokens_a_batch(self) -> float:
        """Return how many tokens of a validation batch carry loss, on average over all processes' batches."""
        labels = self.eval_dataset.with_format("numpy")["labels"]
        tokens = sum(int((row[1:] != -100).sum()) for row in labels)
        return tokens / len(self.get_eval_dataloader())


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


def evaluation_steps(values: dict) -> list[EveryShare]:
    """Return the callback that counts in shares of an epoch, if that is asked for."""
    share = values["evaluation_steps_interval"]
    return [EveryShare(share)] if share > 0 else []


def early_stopping(values: dict) -> list[EarlyStoppingCallback]:
    """Return the callback that stops a run which no longer improves, if it is asked for."""
    if not values["apply_early_stopping"]:
        return []
    return [EarlyStoppingCallback(values["early_stopping_patience"], values["early_stopping_threshold"])]
