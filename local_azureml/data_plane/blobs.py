"""Blob storage as its own clients speak to it: containers, blobs, blocks, metadata, ranges."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from xml.etree import ElementTree

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers

from local_azureml import identifiers, storage
from local_azureml.access import opens, too_large
from local_azureml.context import Context, current
from local_azureml.errors import AzureError, not_played

RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})", re.ASCII)
READ_SIZE = 1024 * 1024  # bytes
BLOCK_LIMIT = 256 * 1024 * 1024  # bytes in one request; the SDK sends larger files as blocks
LIST_LIMIT = 8 * 1024 * 1024  # bytes of a list of blocks, of which there are at most 50 000
METADATA = re.compile(r"[a-z_][a-z0-9_]*", re.ASCII)  # a name of C#'s, in small letters as headers are
BLOB_COMPS = {"PUT": ("block", "blocklist", "metadata"), "GET": ("list",)}  # what `comp` may say, by method
CONTAINER_COMPS = {"GET": ("list",), "HEAD": ("list",)}
PLAYED = {  # headers and parameters that make a request another operation, and their values that are played
    "snapshot": (),
    "versionid": (),
    "x-ms-blob-type": ("BlockBlob",),
    "x-ms-copy-source": (),
    "x-ms-delete-snapshots": ("include",),
    "x-ms-if-tags": (),
    "x-ms-lease-id": (),
    "x-ms-tags": (),
}


def _check_played(request: Request) -> None:
    """Refuse what the protocol has and the emulator has not, lest it be taken for another operation."""
    comps = BLOB_COMPS if "name" in request.path_params else CONTAINER_COMPS
    played = {**PLAYED, "comp": ("", *comps.get(request.method, ()))}
    given = {**request.headers, **request.query_params}
    for name in sorted(played.keys() & given.keys()):
        if given[name] not in played[name]:
            raise not_played(f"{request.method} of a blob or container with {name}={given[name]!r}")


router = APIRouter(prefix=f"/{storage.ACCOUNT}.blob.{identifiers.STORAGE_SUFFIX}")
SIGNED = "the storage library sends a signature, which opens one container for a time"
signed = opens(storage.check_signature, SIGNED)
CHECKED = {"dependencies": [Depends(storage.check_container), Depends(_check_played)]}


def _metadata_file(context: Context, container: str, name: str) -> Path:
    digest = hashlib.sha256(f"{container}/{name}".encode()).hexdigest()
    return context.folder / "blob-metadata" / f"{digest}.json"


def _headers(context: Context, container: str, name: str) -> dict[str, str]:
    file = storage.find(context, container, name)
    found = file.stat()
    metadata = _metadata_file(context, container, name)
    saved = json.loads(metadata.read_text(encoding="utf-8")) if metadata.exists() else {}
    return {
        "ETag": _tag(file),
        "Last-Modified": formatdate(found.st_mtime, usegmt=True),
        "x-ms-creation-time": formatdate(found.st_ctime, usegmt=True),
        "x-ms-blob-type": "BlockBlob",
        "x-ms-version": storage.VERSION,
        "x-ms-server-encrypted": "true",
        "Accept-Ranges": "bytes",
        **{f"x-ms-meta-{key}": value for key, value in saved.items()},
    }


def _tag(file: Path) -> str:
    return f'"0x{file.stat().st_mtime_ns:X}"'


@router.head("/{container}", **CHECKED)
@router.get("/{container}", **CHECKED)
@signed
def container(
    request: Request, container: str, comp: str = "", prefix: str = "", delimiter: str = ""
) -> Response:
    """Return that a container is there, or the list of its blobs as XML."""
    context = current(request)
    if comp != "list":
        return Response(headers={"ETag": '"0x1"', "Last-Modified": formatdate(0, usegmt=True)})
    return Response(_listing(context, container, prefix, delimiter), media_type="application/xml")


@router.get("", dependencies=[Depends(_check_played)])
@signed
def account(request: Request, comp: str, prefix: str, delimiter: str = "") -> Response:
    """Return the list of a container's blobs to azureml-fsspec, which takes the account for the container."""
    container, _, prefix = prefix.partition("/")
    storage.check_container(container)
    listing = _listing(current(request), container, prefix, delimiter, f"{container}/")
    return Response(listing, media_type="application/xml")


def _listing(
    context: Context, container: str, prefix: str, delimiter: str, before: str = "", below: str = ""
) -> bytes:
    """Return XML with the names of the blobs and folders of a folder, `before` in front of each."""
    results = ElementTree.Element("EnumerationResults", ContainerName=container)
    ElementTree.SubElement(results, "Prefix").text = before + prefix
    blobs = ElementTree.SubElement(results, "Blobs")
    folders = set()
    there = sorted(name for name in storage.names(context, container) if name.startswith(below + prefix))
    for name in (name.removeprefix(below) for name in there):
        rest = name.removeprefix(prefix)
        if delimiter and delimiter in rest:
            folder = prefix + rest.split(delimiter)[0] + delimiter
            if folder not in folders:
                folders.add(folder)
                ElementTree.SubElement(ElementTree.SubElement(blobs, "BlobPrefix"), "Name").text = (
                    before + folder
                )
            continue
        blob = ElementTree.SubElement(blobs, "Blob")
        ElementTree.SubElement(blob, "Name").text = before + name
        _entry(
            blob, _headers(context, container, below + name), storage.place(context, container, below + name)
        )
    ElementTree.SubElement(results, "NextMarker")
    return ElementTree.tostring(results, encoding="utf-8", xml_declaration=True)


def _entry(blob: ElementTree.Element, headers: dict, file: Path) -> None:
    properties = ElementTree.SubElement(blob, "Properties")
    size = file.stat().st_size
    values = {"Last-Modified": headers["Last-Modified"], "Etag": headers["ETag"], "Content-Length": str(size)}
    for key, value in {**values, "BlobType": "BlockBlob"}.items():
        ElementTree.SubElement(properties, key).text = value
    metadata = ElementTree.SubElement(blob, "Metadata")
    for key, value in headers.items():
        if key.startswith("x-ms-meta-"):
            ElementTree.SubElement(metadata, key.removeprefix("x-ms-meta-")).text = value


@router.put("/{container}", **CHECKED)
@signed
def make_container(container: str) -> Response:
    """Refuse: a workspace's containers are there from the start."""
    raise AzureError(409, "ContainerAlreadyExists", f"the container {container!r} is there already")


@router.head("/{container}/{name:path}", **CHECKED)
@signed
def properties(request: Request, container: str, name: str) -> Response:
    """Return a blob's headers."""
    context = current(request)
    headers = _headers(context, container, name)
    size = storage.place(context, container, name).stat().st_size
    return Response(headers={**headers, "Content-Length": str(size)})


@router.get("/{container}/{name:path}", **CHECKED)
@signed
def read(
    request: Request, container: str, name: str, comp: str = "", prefix: str = "", delimiter: str = ""
) -> Response:
    """Return a blob, or the range of it that is asked for; of a folder, a code's container, its blobs."""
    context = current(request)
    if comp == "list":
        listing = _listing(context, container, prefix, delimiter, below=f"{name}/")
        return Response(listing, media_type="application/xml")
    headers = _headers(context, container, name)
    _check_conditions(request, headers["ETag"])
    file = storage.place(context, container, name)
    size = file.stat().st_size  # a log may grow while it is read
    start, stop, status = 0, size, 200
    if wanted := request.headers.get("x-ms-range") or request.headers.get("range"):
        start, stop = _bounds(wanted, size)
        status, headers["Content-Range"] = 206, f"bytes {start}-{stop - 1}/{size}"
    headers["Content-Length"] = str(stop - start)
    return StreamingResponse(_bytes(file, start, stop), status, headers, "application/octet-stream")


def _bounds(wanted: str, size: int) -> tuple[int, int]:
    """Return the first byte of a range, and the first after it."""
    asked = RANGE.fullmatch(wanted)
    start = int(asked[1]) if asked else size
    stop = min(int(asked[2]) + 1, size) if asked and asked[2] else size
    if start >= stop:
        message = f"the range {wanted!r} is not within {size} bytes"
        raise AzureError(416, "InvalidRange", message, headers={"Content-Range": f"bytes */{size}"})
    return start, stop


def _bytes(file: Path, start: int, stop: int) -> Iterator[bytes]:
    with file.open("rb") as stream:
        stream.seek(start)
        while start < stop and (chunk := stream.read(min(READ_SIZE, stop - start))):
            start += len(chunk)
            yield chunk


@router.put("/{container}/{name:path}", **CHECKED)
@opens(storage.check_signature, SIGNED, BLOCK_LIMIT)
async def write(request: Request, container: str, name: str, comp: str = "", blockid: str = "") -> Response:
    """Write a blob whole, one block of it, its list of blocks, or its metadata."""
    context = current(request)
    file, metadata = storage.place(context, container, name), _metadata(request.headers)
    if comp in ("", "blocklist"):
        _check_conditions(request, _tag(file) if file.is_file() else None)
    if comp == "block":
        await storage.receive(
            context, storage.block_file(context, container, name, blockid), request.stream()
        )
        return Response(status_code=201)
    if comp == "":
        digest = await storage.receive(context, file, request.stream())
    else:
        content = await _whole(request, LIST_LIMIT)
        digest = hashlib.md5(content, usedforsecurity=False).digest()
        if comp == "blocklist":
            await run_in_threadpool(storage.join, context, container, name, content)
    shown = await run_in_threadpool(_describe, context, container, name, metadata)
    shown |= {"x-ms-request-server-encrypted": "true", "Content-MD5": base64.b64encode(digest).decode()}
    return Response(status_code=200 if comp == "metadata" else 201, headers=shown)


async def _whole(request: Request, most: int) -> bytes:
    """Return the body of a request, or refuse it as soon as it exceeds `most` bytes."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > most:
            raise too_large(most)
    return bytes(content)


def _metadata(given: Headers) -> dict[str, str]:
    """Return the metadata in a request's headers; refuse what a listing in XML could not show."""
    metadata = {k[10:]: v for k, v in given.items() if k.startswith("x-ms-meta-")}
    for key, value in metadata.items():
        if not METADATA.fullmatch(key) or not value.isprintable():
            message = f"{key!r} is no name of metadata, or has a value that is no text"
            raise AzureError(400, "InvalidMetadata", message)
    return metadata


def _describe(context: Context, container: str, name: str, metadata: dict[str, str]) -> dict[str, str]:
    """Write the metadata of a blob that is there, and return its headers."""
    storage.find(context, container, name)
    with storage.part_of(context, _metadata_file(context, container, name)) as stream:
        stream.write(json.dumps(metadata).encode())
    return _headers(context, container, name)


def _check_conditions(request: Request, tag: str | None) -> None:
    """Refuse a request that was meant for another state of the blob; `tag` is None where there is no blob."""
    if tag and request.headers.get("if-none-match") == "*":
        raise AzureError(409, "BlobAlreadyExists", "the blob is there already")
    if request.headers.get("if-match", "*") not in ("*", tag):
        raise AzureError(412, "ConditionNotMet", "the blob was changed in the meantime")


@router.delete("/{container}/{name:path}", **CHECKED)
@signed
def delete(request: Request, container: str, name: str) -> Response:
    """Delete a blob."""
    context = current(request)
    _headers(context, container, name)
    storage.place(context, container, name).unlink()
    _metadata_file(context, container, name).unlink(missing_ok=True)
    return Response(status_code=202)
