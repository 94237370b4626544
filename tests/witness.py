"""Microsoft's description of the service, as the installed SDK carries it, held against recorded answers."""

import datetime
import enum
import functools
import importlib
import json
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path

CLIENTS = ("arm_ml_service", "runhistory", "registry_discovery")
BASE = "azure.ai.ml._restclient"
REGISTRY = "/mferp/managementfrontend"  # before the paths of a registry's own host


class Operation(typing.NamedTuple):
    """One operation: the paths it takes, and the type of its answer."""

    method: str
    path: re.Pattern
    returns: str  # "ComputeResource", "list Usage" or "" for none
    client: str


@functools.cache
def operations() -> list[Operation]:
    """Return what the service can be asked, read from the source of the SDK's generated clients."""
    found = []
    for client in CLIENTS:
        source = Path(importlib.import_module(f"{BASE}.{client}").__file__).with_name("operations")
        source = (source / "_operations.py").read_text()
        returned = {}
        for group in re.split(r"^class ", source, flags=re.M)[1:]:
            name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", group.partition("Operations")[0]).lower()
            for called, result in re.findall(
                r"^    def (?:begin_)?(\w+)\((?:.|\n)*?\) -> (.+):$", group, re.M
            ):
                returned[f"{name}_{called}"] = result
        for name, body in re.findall(
            r"^def build_(\w+)_request\((.*?)(?=^def |^class )", source, re.M | re.S
        ):
            path, method = re.search(r'_url = \(?\s*"(.+)"', body)[1], re.search(r'method="(\w+)"', body)[1]
            pattern = re.compile(re.sub(r"\\{\w+\\}", "([^/]+)", re.escape(path)), re.IGNORECASE)
            result = returned.get(name, "")
            model = re.search(r"_models\.(\w+)", result)
            many = "list " if "ItemPaged" in result else ""
            found.append(Operation(method, pattern, many + model[1] if model else "", client))
    # the path with the fewest variables is the one that is meant
    return sorted(found, key=lambda operation: operation.path.groups)


def operation(method: str, path: str) -> Operation | None:
    """Return the operation that a request asks for."""
    path = path.removeprefix(REGISTRY)
    fits = (each for each in operations() if each.method == method and each.path.fullmatch(path))
    return next(fits, None)


@functools.cache
def fields(model: type) -> dict[str, tuple]:
    """Return the type of each field of a model by its name on the wire."""
    model.__new__(model)  # gives the fields their names
    names = importlib.import_module(model.__module__.rpartition("._")[0])
    hints = typing.get_type_hints(model, localns={"_models": names})
    return {field._rest_name: hints[name] for name, field in model._attr_to_rest_field.items()}


def kind_of(model: type, value: dict) -> type:
    """Return the model that a value's discriminator chooses."""
    for name in _discriminators(model):
        chosen = model.__mapping__.get(value.get(name))
        if chosen is not None and chosen is not model:
            return kind_of(chosen, value)
    return model


def _discriminators(model: type) -> Iterator[str]:
    model.__new__(model)
    for field in model._attr_to_rest_field.values():
        if field._is_discriminator:
            yield field._rest_name


def faults_of(value, wanted, place: str) -> Iterator[str]:
    """Yield what in `value` differs from the type that is `wanted` of it."""
    choices = typing.get_args(wanted)
    origin = typing.get_origin(wanted)
    if wanted is typing.Any or isinstance(wanted, str):
        return
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in choices:
            return
        enums = [choice for choice in choices if isinstance(choice, type) and issubclass(choice, enum.Enum)]
        rest = [choice for choice in choices if choice is not type(None)]
        yield from faults_of(value, enums[0] if enums else rest[0], place)
    elif origin is typing.Literal:
        allowed = [getattr(choice, "value", choice) for choice in choices]
        if value not in allowed:
            yield f"{place}: {value!r} is not one of {allowed}"
    elif origin in (list, typing.List):  # noqa: UP006
        if not isinstance(value, list):
            yield f"{place}: not a list: {value!r}"
            return
        for each in value:
            yield from faults_of(each, choices[0], f"{place}[]")
    elif origin in (dict, typing.Dict):  # noqa: UP006
        if not isinstance(value, dict):
            yield f"{place}: not an object: {value!r}"
            return
        for each in value.values():
            yield from faults_of(each, choices[1], f"{place}{{}}")
    elif isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        if value not in [member.value for member in wanted]:
            yield f"{place}: {value!r} is not one of {wanted.__name__}"
    elif hasattr(wanted, "_is_model"):
        yield from faults_of_model(value, wanted, place)
    elif not isinstance(value, NATIVE.get(wanted, object)) or not _readable(value, wanted):
        yield f"{place}: not {wanted.__name__}: {value!r}"


NATIVE = {
    str: str,
    bool: bool,
    int: int,
    float: (int, float),
    datetime.datetime: str,
    datetime.timedelta: str,
}
DURATION = re.compile(r"P(?=.)(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+(\.\d+)?S)?)?")


def _readable(value, wanted: type) -> bool:
    if wanted is datetime.timedelta:
        return DURATION.fullmatch(value) is not None
    if wanted is datetime.datetime:
        try:
            datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
        except ValueError:
            return False
    return wanted is bool or not isinstance(value, bool)


def faults_of_model(value, model: type, place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{place}: not an object: {value!r}"
        return
    known = fields(kind_of(model, value))
    for name in sorted(value.keys() - known.keys()):
        yield f"{place}.{name}: unknown to {model.__name__}"
    for name, wanted in known.items():
        if name in value:
            yield from faults_of(value[name], wanted, f"{place}.{name}")
        elif type(None) not in typing.get_args(wanted):
            yield f"{place}.{name}: required by {model.__name__}, and missing"


def faults_of_answer(exchange: dict) -> Iterator[str]:
    """Yield what in an answer differs from the description."""
    asked = operation(exchange["method"], exchange["path"])
    if asked is None:
        if "/mfeOperation" not in exchange["path"] and exchange["status"] != 501:
            yield "no such operation"
        return
    models = importlib.import_module(f"{BASE}.{asked.client}.models")
    status, answer = exchange["status"], exchange["answer"]
    if status >= 400:
        if asked.client == "arm_ml_service":
            yield from faults_of_model(answer, models.ErrorResponse, "error")
    elif asked.returns.startswith("list "):
        of = getattr(models, asked.returns.removeprefix("list "))
        yield from faults_of(answer, dict[str, typing.Any], "answer")
        for each in next(iter(answer.values())):
            yield from faults_of_model(each, of, f"value[]:{of.__name__}")
    elif asked.returns and answer is not None:
        yield from faults_of_model(answer, getattr(models, asked.returns), asked.returns)


def missing(sent, answered, place: str = "") -> Iterator[str]:
    """Yield the names that were sent with a value and are not in the answer."""
    if isinstance(sent, dict):
        there = answered if isinstance(answered, dict) else {}
        by_name = {
            name.lower(): value for name, value in there.items()
        }  # names of deployments come in small letters
        for name, value in sent.items():
            if value is None or value == {} or value == []:
                continue
            if name.lower() not in by_name:
                yield f"{place}.{name}"
            else:
                yield from missing(value, by_name[name.lower()], f"{place}.{name}")


def departures(exchanges: list[dict]) -> list[str]:
    """Return what in recorded answers differs from the description, without what EXCEPTIONS allows."""
    found, put = set(), {}
    for exchange in exchanges:
        path = exchange["path"].lower()
        found |= {f"{_short(exchange)}: {fault}" for fault in faults_of_answer(exchange)}
        if exchange["status"] < 400 and exchange["method"] in ("PUT", "PATCH"):
            put[path] = exchange["sent"]
        elif exchange["method"] == "DELETE":
            put.pop(path, None)
        elif exchange["method"] == "GET" and exchange["status"] == 200 and path in put:
            lost = missing(put[path], exchange["answer"])
            found |= {f"{_short(exchange)}: {name} was sent and is not returned" for name in lost}
    return sorted(fault for fault in found if not any(re.search(pattern, fault) for pattern in EXCEPTIONS))


def _short(exchange: dict) -> str:
    """Return method, status and the kinds in a path, without the names: "GET 200 models/versions"."""
    parts = exchange["path"].rpartition("/providers/")[2].split("/")[1:]
    kinds = [part for part in parts[0::2] if part != "workspaces"]
    return f"{exchange['method']} {exchange['status']} {'/'.join(kinds)}"


EXCEPTIONS = {  # by the pattern of a departure: why it is none
    r"credentials\.secrets(: required| was sent)": "only listSecrets tells them, on Azure too",
    r"outputs\{\}\.assetVersion: unknown": "the SDK sends and reads it; its description lacks it",
    r"samplingAlgorithm\.logbase: unknown": "so too a sweep's",
    r"JobBase\.properties\.resources: unknown": "so too: an older description has a sweep's",
    r"ModelVersion\.properties\.system_metadata: unknown": "the registry's block, no model of the SDK's",
}


def read(file: Path, start: int = 0) -> tuple[list[dict], int]:
    """Return the exchanges of a recording from a byte on, and the byte behind them."""
    if not file.exists():
        return [], start
    with file.open("rb") as recording:
        recording.seek(start)
        lines = [line for line in recording if line.endswith(b"\n")]  # the last may be half written
    return [json.loads(line) for line in lines], start + sum(map(len, lines))


if __name__ == "__main__":
    import sys

    for line in departures(read(Path(sys.argv[1]))[0]):
        print(line)
