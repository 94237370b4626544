"""Addresses: the file or folder behind what a job, a model or a deployment names."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlparse

from local_azureml import paths, storage
from local_azureml.context import Context
from local_azureml.control_plane import asset_rules, assets, datastores, outputs, registry
from local_azureml.errors import not_played, user_error


def resolve(context: Context, address: str) -> Path:
    """Return the file or folder behind an address: in a datastore, output, asset or registry.

    What is on the web gets the place where a child is to put it, by `to_fetch`.
    """
    address = address.strip()
    read, names = _reader(address)
    place = read(context, *names)
    if not place.exists() and not _on_web(context, address):
        raise user_error(f"{address} does not exist: no {place.name!r}", "DataNotFound")
    return place


def check(context: Context, address: str) -> None:
    """Refuse an address that nothing here reads, or an asset that names one."""
    read, names = _reader(address.strip())
    if read is _in_asset:
        _reader(_of_asset(context, *names))


def to_fetch(context: Context, *given: str) -> dict[str, str]:
    """Return the address on the web, and the file that is to be made of it, for those that lead there."""
    found = filter(None, (_on_web(context, address.strip()) for address in given))
    return {address: str(_in_web(context, address)) for address in found}


def _on_web(context: Context, address: str) -> str | None:
    """Return the address of the web that an address leads to; None for all others."""
    read, names = _reader(address)
    if read is _in_asset:
        address = _of_asset(context, *names)
        read, _ = _reader(address)
    return address if read is _in_web else None


def model_type(context: Context, address: str) -> str | None:
    """Return the type of the workspace's model that an address names; None for any other address."""
    read, names = _reader(address.strip())
    if read is not _in_asset or names[0].lower() != "models":
        return None
    return _properties(context, *names)["modelType"]


def _reader(address: str) -> tuple[Callable[..., Path], tuple]:
    """Return the function that finds what an address points at, and the names that the address gives it."""
    for pattern, read in READERS:
        if named := re.fullmatch(pattern, address, re.IGNORECASE):
            return read, named.groups()
    if ELSEWHERE.match(address):
        raise not_played(f"reading {address!r}", "name a local file or folder in its place")
    raise user_error(f"{address!r} is not an address that the emulator can read", "InvalidUri")


def _in_datastore(context: Context, address: str) -> Path:
    return datastores.folder_at(context, address)


def _in_output(context: Context, job: str, output: str, below: str | None) -> Path:
    return datastores.folder_at(context, outputs.address(context, job, output) + (below or ""))


def _properties(context: Context, kind: str, name: str, version: str) -> dict:
    kind = kind.lower()
    if version.lower() == "latest":
        version = assets.find_container(context, kind, name)["properties"]["latestVersion"]
    return assets.find(context, kind, name, version)["properties"]


def _of_asset(context: Context, kind: str, name: str, version: str) -> str:
    """Return the address that an asset names."""
    properties = _properties(context, kind, name, version)
    address = next((properties[key] for key in asset_rules.PLACES if properties.get(key)), None)
    if address is None or _reader(address.strip())[0] is _in_asset:
        raise user_error(f"version {version!r} of {name!r} has no files of its own; it names {address!r}")
    return address.strip()


def _in_asset(context: Context, kind: str, name: str, version: str) -> Path:
    return resolve(context, _of_asset(context, kind, name, version))


def _in_registry(context: Context, name: str, version: str) -> Path:
    registry.entry(context, "models", name, version)
    return context.base_model


def _in_blob(context: Context, address: str) -> Path:
    container, _, name = urlparse(address).path.lstrip("/").partition("/")[2].partition("/")
    return storage.place(context, container, unquote(name).rstrip("/"))


def _in_web(context: Context, address: str) -> Path:
    name = unquote(urlparse(address).path).rpartition("/")[2]
    folder = context.folder / "web" / hashlib.sha256(address.encode()).hexdigest()[:16]
    return folder / (name if paths.is_plain(name) else "index")


ELSEWHERE = re.compile(r"(wasbs?|abfss?|adl)://", re.IGNORECASE)
KIND_PATTERN = "(models|data|codes)"
READERS = (
    (r"azureml://registries/azureml/models/([^/]+)/versions/([^/]+)", _in_registry),
    (r"(azureml://(?:.*/)?datastores/[^/]+/paths/.*)", _in_datastore),
    (r"azureml://jobs/([^/]+)/outputs/([^/]+)(?:/paths)?(/.*)?", _in_output),
    (rf"(?:azureml:/)?/subscriptions/.*/{KIND_PATTERN}/([^/]+)/versions/([^/]+)", _in_asset),
    (rf"azureml://locations/.*/{KIND_PATTERN}/([^/]+)/versions/([^/]+)", _in_asset),
    (r"(https://localhost:\d+/.*)", _in_blob),
    (r"(https?://.+)", _in_web),
)
