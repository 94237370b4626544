"""What someone sees of a training run: lines in its log and metrics in MLflow."""

import math
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import torch
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from transformers import TrainerCallback

from local_azureml.engine.processes import UserError

PARAMS_AT_ONCE = 100  # MLflow's limit for one request
LONGEST_PARAM = 500  # characters


class LogCallback(TrainerCallback):
    """Prints one line for each of the Trainer's logs: step, epoch, loss, tokens a second, time left."""

    def __init__(self, tokens: int):
        self.tokens = tokens  # of one epoch, padding not counted

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun, self.first_step, self.first_epoch = time.monotonic(), state.global_step, state.epoch or 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        place = f"step {state.global_step}/{state.max_steps}  epoch {state.epoch or 0:.2f}"
        if "loss" in logs:
            print(f"{place}  loss {logs['loss']:.4f}  {self._pace(state)}", flush=True)
        elif "eval_loss" in logs:
            loss = logs["eval_loss"]
            print(
                f"{place}  evaluation loss {loss:.4f}  perplexity {math.exp(min(loss, 99)):.2f}", flush=True
            )
        elif "train_runtime" in logs:
            print(f"trained {state.global_step} steps in {logs['train_runtime']:.1f} s", flush=True)

    def _pace(self, state) -> str:
        seconds = time.monotonic() - self.begun
        steps = state.global_step - self.first_step
        left = seconds / max(steps, 1) * (state.max_steps - state.global_step)
        tokens = self.tokens * (state.epoch - self.first_epoch)
        return f"{tokens / seconds:,.0f} tokens/s  {timedelta(seconds=round(left))} left"


class NaNCallback(TrainerCallback):
    """Ends a run whose loss is no longer a number."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise UserError(
                f"the loss became {loss} at step {state.global_step};"
                f" lower learning_rate (it is {args.learning_rate}) or check the training rows"
            )


class MlflowCallback(TrainerCallback):
    """Writes each number that the Trainer logs to the job's own run and to the pipeline's, meanwhile."""

    def __init__(self):
        self.runs = [
            os.environ[name] for name in ("MLFLOW_RUN_ID", "AZUREML_ROOT_RUN_ID") if name in os.environ
        ]
        self.client = MlflowClient() if self.runs else None
        self.writer = ThreadPoolExecutor(1, "mlflow")
        self.writes: list[Future] = []

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and self.runs:
            values = {**args.to_sanitized_dict(), **kwargs["model"].config.to_dict()}
            params = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in values.items()]
            for first in range(0, len(params), PARAMS_AT_ONCE):
                self._write(self.runs[0], params=params[first : first + PARAMS_AT_ONCE])

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        now = int(time.time() * 1000)
        numbers = {name: value for name, value in logs.items() if isinstance(value, (int, float))}
        metrics = [Metric(name, float(value), now, state.global_step) for name, value in numbers.items()]
        for run in self.runs:
            self._write(run, metrics=metrics)

    def close(self) -> None:
        """Wait until everything is written; raise if something could not be."""
        self.writer.shutdown(wait=True)
        for write in self.writes:
            write.result()

    def _write(self, run: str, **what) -> None:
        self.writes.append(self.writer.submit(self.client.log_batch, run, **what))


class OutOfMemoryCallback(TrainerCallback):
    """Asks for more memory than there is after the first step, where the fault out-of-memory is on."""

    def __init__(self, faults: dict):
        self.faults = faults

    def on_step_end(self, args, state, control, **kwargs):
        if "out-of-memory" in self.faults:
            torch.empty(1 << 50, dtype=torch.uint8)
