"""The shapes of request bodies: what a service reads has its type, anything else is kept as it came."""

import json
import re
from typing import Annotated, Any, Literal

from fastapi import Body
from pydantic import BeforeValidator, ConfigDict, Field, WrapValidator
from typing_extensions import Required, TypedDict  # pydantic wants this one below Python 3.12


def _clean(body):
    """Return a body without its nulls, which mean absence; refuse what an answer could not repeat."""
    if not isinstance(body, dict):
        return body
    kept = _without_nulls(body, DEEPEST)
    json.dumps(kept, allow_nan=False, ensure_ascii=False).encode()
    return kept


def _without_nulls(value, levels: int):
    if levels == 0:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    if isinstance(value, dict):
        return {key: _without_nulls(inner, levels - 1) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner, levels - 1) for inner in value] if isinstance(value, list) else value


def spelled(*words: str) -> BeforeValidator:
    """Return what writes one of `words`, in any capitals, as Azure writes it."""
    known = {word.lower(): word for word in words}
    return BeforeValidator(lambda value: known.get(value.lower(), value) if isinstance(value, str) else value)


DEEPEST = 100
CLEAN = BeforeValidator(_clean)
Text = Annotated[str, Field(max_length=100_000)]
Name = Annotated[str, Field(max_length=255)]
Count = Annotated[int, Field(ge=1, le=10_000)]
AS_SENT = WrapValidator(lambda sent, check: str(check(sent)) if isinstance(sent, str) else check(sent))
WORD = BeforeValidator(lambda value: json.dumps(value) if isinstance(value, bool) else value)
Tags = dict[str, Annotated[str, Field(coerce_numbers_to_str=True), WORD]]
URI = r"^([A-Za-z][A-Za-z0-9+.-]+:|/subscriptions/)\S"  # a scheme and what follows, or an Azure id
DURATION = r"^P(?=.)(\d{1,6}D)?(T(?=.)(\d{1,6}H)?(\d{1,6}M)?(\d{1,6}(\.\d{1,6})?S)?)?$"  # ISO 8601


def seconds(duration: str) -> float:
    """Return the seconds of an ISO 8601 duration such as PT2M or P0DT0H2M0S."""
    units = {"D": 86400, "H": 3600, "M": 60, "S": 1}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([DHMS])", duration))


class Shape(TypedDict, total=False):
    __pydantic_config__ = ConfigDict(extra="allow", regex_engine="python-re")


SWITCH = spelled("Enabled", "Disabled", "NotSpecified")
Duration = Annotated[str, Field(pattern=DURATION)]


class ScaleSettings(Shape, total=False):
    minNodeCount: Annotated[int, Field(ge=0, le=10_000)]
    maxNodeCount: Annotated[int, Field(ge=0, le=10_000)]
    nodeIdleTimeBeforeScaleDown: Duration


class ClusterProperties(Shape, total=False):
    vmSize: Name
    vmPriority: Annotated[Literal["Dedicated", "LowPriority"], spelled("Dedicated", "LowPriority")]
    userAccountCredentials: dict[str, Any]
    osType: Annotated[Name, spelled("Linux", "Windows")]
    remoteLoginPortPublicAccess: Annotated[Name, SWITCH]
    scaleSettings: ScaleSettings


class ComputeProperties(Shape, total=False):
    computeType: Annotated[Name, spelled("AmlCompute")]
    description: Text
    properties: ClusterProperties


IDENTITIES = ("None", "SystemAssigned", "UserAssigned", "SystemAssigned,UserAssigned")


class Identity(Shape, total=False):
    type: Required[Annotated[Literal[IDENTITIES], spelled(*IDENTITIES)]]
    userAssignedIdentities: dict[str, dict[str, Any]]


class Resource(Shape, total=False):
    location: Name
    tags: Tags
    identity: Identity
    sku: dict[str, Any]


class _Compute(Resource, total=False):
    properties: Required[ComputeProperties]


class Distribution(Shape, total=False):
    distributionType: Name
    distribution_type: Name
    processCountPerInstance: Count
    process_count_per_instance: Annotated[Count, AS_SENT]


class Described(Shape, total=False):
    description: Text
    tags: Tags
    properties: Tags


class Limits(Shape, total=False):
    timeout: Duration


class Resources(Shape, total=False):
    instanceCount: Count
    instance_count: Annotated[Count, AS_SENT]
    instanceType: Name


class Node(Shape, total=False):
    name: Name
    componentId: Text
    computeId: Text
    inputs: dict[str, Any]
    outputs: dict[str, dict[str, Any]]
    type: Name
    resources: Resources
    distribution: Distribution
    limits: Limits | dict[str, float]  # of a sweep, numbers
    environmentVariables: Tags
    environment_variables: Tags


class Output(Shape, total=False):
    uri: Text
    jobOutputType: Name
    assetName: Name
    assetVersion: Name


JOB_TYPES = ("Command", "Pipeline", "FineTuning", "Sweep", "AutoML", "Spark")


class FineTuning(Shape, total=False):
    modelProvider: Required[Annotated[Name, spelled("AzureOpenAI", "Custom")]]
    taskType: Required[Annotated[Name, spelled("ChatCompletion", "TextCompletion")]]
    model: Required[dict[str, Any]]
    trainingData: Required[dict[str, Any]]
    validationData: dict[str, Any]
    hyperParameters: dict[str, Any]


class JobProperties(Described, total=False):
    jobType: Required[Annotated[Name, spelled(*JOB_TYPES)]]
    experimentName: Name
    displayName: Name
    isArchived: bool
    command: Text
    environmentId: Text
    codeId: Text
    computeId: Text
    inputs: dict[str, dict[str, Any]]
    outputs: dict[str, Output]
    services: dict[str, Any]
    resources: Resources
    distribution: Distribution
    limits: Limits
    environmentVariables: Tags
    jobs: dict[str, Node]
    fineTuningDetails: FineTuning
    settings: dict[str, Any]


class _Job(Shape, total=False):
    properties: Required[JobProperties]


class _Run(Described, total=False):
    displayName: Name
    hidden: bool


class ComponentSpec(Shape, total=False):
    name: Name
    type: Name
    command: Text
    code: Text
    environment: Text
    distribution: Distribution
    resources: Resources
    limits: dict[str, Any]
    inputs: dict[str, dict[str, Any]]
    outputs: dict[str, dict[str, Any]]


class AssetProperties(Described, total=False):
    isArchived: bool
    isAnonymous: bool
    modelUri: Annotated[str, Field(pattern=URI, max_length=10_000)]
    dataUri: Text
    codeUri: Text
    flavors: dict[str, Any]
    componentSpec: ComponentSpec


class _Asset(Shape, total=False):
    properties: Required[AssetProperties]


class DatastoreProperties(Described, total=False):
    datastoreType: Required[Name]
    credentials: Required[dict[str, Any]]
    accountName: Name
    containerName: Name


class _Datastore(Shape, total=False):
    properties: Required[DatastoreProperties]


class EndpointProperties(Described, total=False):
    authMode: Annotated[Name, spelled("Key", "AMLToken", "AADToken")]
    traffic: dict[str, int]
    mirrorTraffic: dict[str, int]
    publicNetworkAccess: Annotated[Name, SWITCH]


class _Endpoint(Resource, total=False):
    location: Required[Name]
    properties: Required[EndpointProperties]


class _EndpointChange(Resource, total=False):
    properties: EndpointProperties


class RequestSettings(Shape, total=False):
    requestTimeout: Duration
    maxConcurrentRequestsPerInstance: Count


class Probe(Shape, total=False):
    initialDelay: Duration
    period: Duration
    timeout: Duration
    successThreshold: Count
    failureThreshold: Count


class CodeConfiguration(Shape, total=False):
    codeId: Text
    scoringScript: Annotated[str, Field(min_length=1, max_length=255)]


class DeploymentProperties(Shape, total=False):
    codeConfiguration: CodeConfiguration
    model: Text
    environmentId: Text
    endpointComputeType: Annotated[Name, spelled("Managed", "Kubernetes", "AzureMLCompute")]
    egressPublicNetworkAccess: Annotated[Name, SWITCH]
    instanceType: Name
    requestSettings: RequestSettings
    livenessProbe: Probe
    readinessProbe: Probe
    environmentVariables: Tags


class Sku(Shape, total=False):
    capacity: Count


class _Deployment(Resource, total=False):
    location: Required[Name]
    sku: Sku
    properties: Required[DeploymentProperties]


class _NewKey(Shape, total=False):
    keyType: Name
    keyValue: Name


class _LogRequest(Shape, total=False):
    tail: Count


Compute = Annotated[_Compute, CLEAN, Body()]
Job = Annotated[_Job, CLEAN, Body()]
Run = Annotated[_Run, CLEAN, Body()]
Asset = Annotated[_Asset, CLEAN, Body()]
Datastore = Annotated[_Datastore, CLEAN, Body()]
Endpoint = Annotated[_Endpoint, CLEAN, Body()]
EndpointChange = Annotated[_EndpointChange, CLEAN, Body()]
Deployment = Annotated[_Deployment, CLEAN, Body()]
NewKey = Annotated[_NewKey, CLEAN, Body()]
LogRequest = Annotated[_LogRequest, CLEAN, Body()]
