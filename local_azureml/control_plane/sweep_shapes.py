"""The shape of a sweep job's properties, on top of what every job's may hold."""

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import Required, TypedDict

from local_azureml.control_plane.shapes import (
    Distribution,
    Duration,
    Resources,
    Shape,
    Tags,
    Text,
    spelled,
)
from local_azureml.errors import unfit

Number = Annotated[int, Field(ge=0, le=10_000)]
Trials = Annotated[int, Field(ge=1, le=1000)]  # how-to-tune-hyperparameters: from 1 to 1000
SAMPLING, RULES, GOALS = ("Grid", "Random", "Bayesian"), ("Random", "Sobol"), ("Minimize", "Maximize")
POLICIES = ("Bandit", "MedianStopping", "TruncationSelection")


class Sampling(Shape, TypedDict, total=False):
    samplingAlgorithmType: Required[Annotated[Literal[SAMPLING], spelled(*SAMPLING)]]
    rule: Annotated[Literal[RULES], spelled(*RULES)]
    seed: int


class Objective(Shape, TypedDict, total=False):
    goal: Required[Annotated[Literal[GOALS], spelled(*GOALS)]]
    primaryMetric: Required[Annotated[str, Field(min_length=1, max_length=250)]]


class Limits(Shape, TypedDict, total=False):
    maxTotalTrials: Trials
    maxConcurrentTrials: Trials
    timeout: Duration
    trialTimeout: Duration


class Policy(Shape, TypedDict, total=False):
    policyType: Required[Annotated[Literal[POLICIES], spelled(*POLICIES)]]
    evaluationInterval: Number
    delayEvaluation: Number
    slackFactor: Annotated[float, Field(ge=0)]
    slackAmount: Annotated[float, Field(ge=0)]
    truncationPercentage: Number


class Trial(Shape, TypedDict, total=False):
    command: Required[Text]
    environmentId: Required[Text]
    codeId: Text
    environmentVariables: Tags
    distribution: Distribution
    resources: Resources


Hyperparameter = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*\Z", max_length=255)]


class Sweep(Shape, TypedDict, total=False):
    searchSpace: Required[Annotated[dict[Hyperparameter, tuple[str, list[Any]]], Field(max_length=1000)]]
    samplingAlgorithm: Required[Sampling]
    objective: Required[Objective]
    trial: Required[Trial]
    limits: Limits
    earlyTermination: Policy


SWEEP = TypeAdapter(Sweep)


def read(properties: dict) -> dict:
    """Return a sweep job's properties, with words as Azure writes them; refuse what doesn't fit."""
    try:
        return SWEEP.dump_python(SWEEP.validate_python(properties), mode="json")
    except ValidationError as error:
        raise unfit(error.errors(), "the sweep's ") from error
