"""The cases of `make faults` that people meet: misspelt settings, retired models, quota, data at fault."""

import json
from dataclasses import dataclass, field

SIZE = "Standard_NC24ads_A100_v4"
TAKEN = "somebody-elses"  # an endpoint name
DONE = "Nothing left running"
OWN = "mine.jsonl"  # beside the notebook
CLUSTER = ("computes/gpu-cluster",)  # at zero machines


@dataclass(frozen=True)
class Case:
    """A fault or parameters, and what a run with them has to come to."""

    fault: str
    step: int | None  # the step that stops; 0 where the run goes through, None where either may be
    says: str = ""  # a pattern in what the user reads
    parameters: dict = field(default_factory=dict)
    spends: bool = True  # False: known beforehand, so nothing is billed, and no more is created than this:
    creates: tuple[str, ...] = ()
    leaves: int = 0  # endpoints
    kills: bool = False  # the emulator, while the job runs; another takes its place
    what: str = ""  # happens, in words, where there is no fault
    rows: str = ""  # what is in the file OWN

    @property
    def name(self) -> str:
        """Return what happens, as the table says it."""
        return self.fault or self.what


def without_fault(model: str, version: str) -> Case:
    """Return the case of a run of all nine steps with a model of the registry."""
    says = f"models/{model}/versions/{version}, trained by.*{DONE}"
    given = {"model_name": model, "model_version": version}
    return Case("", 0, says, given, what=f"no fault: {model} {version}")


def chat(*roles: str) -> str:
    """Return a conversation of these roles as a line of JSON."""
    return json.dumps({"messages": [{"role": role, "content": f"I am the {role}."} for role in roles]}) + "\n"


def refused(what: str, step: int, says: str, **parameters) -> Case:
    """Return the case of a run that its parameters stop before anything is billed."""
    return Case("", step, says, parameters, spends=False, creates=CLUSTER if step > 3 else (), what=what)


def tuned(what: str, step: int, says: str, **inputs) -> Case:
    """Return the case of a run that its training inputs stop before anything is billed."""
    return refused(what, step, says, finetune_parameters=inputs)


FIRST_CASES = [  # what people meet; most is known before anything is billed
    refused(
        "a misspelt parameter",
        1,
        "no parameter dataset_spilt_pc; did you mean dataset_split_pc",
        dataset_spilt_pc=1,
    ),
    refused(
        "a parameter out of range",
        1,
        "instance_count is 0: it takes a whole number, 1 or more",
        instance_count=0,
    ),
    Case("model-missing", 2, "no such model: .*'Phi-3-mini-4k-instruct'", spends=False),
    Case("model-archived", 0, f"Warning: the component has no input learning_rate_max.*{DONE}"),
    without_fault("Phi-3-mini-4k-instruct", "14"),
    without_fault("Phi-3-mini-4k-instruct", "15"),
    without_fault("Phi-4", "8"),
    Case("quota-short", 3, "nothing was created.*quota.*: 0 cores", spends=False),
    Case(f"size-missing={SIZE}", 3, f"nothing was created.*{SIZE}", spends=False),
    tuned(
        "a misspelt training input", 3, "num_train_epoch:.*did you mean num_train_epochs", num_train_epoch=2
    ),
    tuned(
        "a training input out of range",
        3,
        "evaluation_steps_interval: 2, needed a number",
        evaluation_steps_interval=2,
    ),
    tuned("a training input that is a text", 3, "learning_rate: '5e-6'.*write 5.0e-06", learning_rate="5e-6"),
    tuned(
        "max_steps beside epochs", 3, "max_steps: 2, needed -1 beside num", max_steps=2, num_train_epochs=1
    ),
    tuned(
        "two inputs that exclude each other",
        3,
        "apply_early_stopping: 'true', needed 'false' where evaluation_strategy is 'disable'",
        apply_early_stopping="true",
        evaluation_strategy="disable",
    ),
    refused(
        "a dataset that is not there", 4, "nothing was billed.*nobody/nothing", dataset_name="nobody/nothing"
    ),
    Case(
        "",
        4,
        "nothing was billed.*1 not_alternating.*mine.jsonl:1: not_alternating",
        {"dataset_name": OWN},
        spends=False,
        creates=CLUSTER,
        what="own data at fault",
        rows=chat("user", "user") + 20 * chat("user", "assistant"),
    ),
    refused("too few rows", 4, "6 conversations to train with", dataset_split_pc=0.1),
    tuned("fewer rows than a batch", 4, "training rows: 60, needed 512", per_device_train_batch_size=512),
    tuned(
        "rows longer than the model's context",
        4,
        "max_seq_length: 8192, needed at most 4096",
        max_seq_length=8192,
    ),
    refused(
        "a training that the GPU can't hold",
        4,
        "memory of a GPU: 80 GB, needed 23. GB or more; choose compute_size Standard_",
        model_name="Phi-4",
        finetune_parameters={"apply_lora": "false"},
    ),
    tuned(
        "more evaluation than training",
        4,
        r"evaluations: \d+, needed at most \d+, or they cost more than the training",
        evaluation_steps_interval=0,
        eval_steps=1,
        per_device_train_batch_size=1,
    ),
    tuned(
        "evaluations that never come", 4, r"eval_steps: 500, needed at most \d+", evaluation_steps_interval=0
    ),
    tuned(
        "early stopping that never stops",
        4,
        r"early_stopping_patience: 50, needed less than \d+",
        apply_early_stopping="true",
        early_stopping_patience=50,
    ),
    refused(
        "a limit that no training can keep",
        4,
        "job_limit_minutes: 0.0001, needed 1",
        job_limit_minutes=0.0001,
    ),
    Case("hub-unreachable", 4, "nothing was billed.*cannot reach", spends=False, creates=CLUSTER),
    Case("no-credential", 1, "no Azure login was found.*az login", spends=False),
    Case("workspace-missing", 1, "the workspace.*did not open", spends=False),
    Case("registry-forbidden", 1, "the registry.*Forbidden", spends=False),
    Case("quota-forbidden", 3, "nothing was created.*can't be read.*Reader", spends=False),
    Case(
        f"endpoint-taken={TAKEN}", 3, f"nothing was created.*{TAKEN}", {"endpoint_name": TAKEN}, spends=False
    ),
]
