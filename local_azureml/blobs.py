"""Blob storage: containers are folders, blobs are files, and no path leaves its container."""

import base64
import hashlib
import hmac
import json
import shutil
import uuid
from email.utils import formatdate
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs
from xml.etree import ElementTree

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, Response
from starlette.concurrency import run_in_threadpool

from local_azureml import cloud
from local_azureml.errors import AzureError

ACCOUNT = "store"
VERSION = "2024-11-04"  # of the storage protocol
BLOCK_LIMIT = 256 * 1024 * 1024  # bytes in one request; the SDK sends larger files as blocks


def signature(local: cloud.Cloud) -> str:
    """Return the query string that opens every container."""
    return f"sv={VERSION}&sr=c&sp=racwdl&sig={local.secret('sas_signature')}"


def _check_signature(request: Request) -> None:
    given = parse_qs(request.url.query).get("sig", [""])[0]
    if not hmac.compare_digest(given.encode(), cloud.current(request).secret("sas_signature").encode()):
        raise AzureError(
            403, "AuthenticationFailed", "the signature (sig) of the blob's address is not valid"
        )


router = APIRouter(
    prefix=f"/{ACCOUNT}.blob.{cloud.STORAGE_SUFFIX}/{{container}}", dependencies=[Depends(_check_signature)]
)


def place(local: cloud.Cloud, container: str, name: str) -> Path:
    """Return the file behind a blob; refuse a name that would leave the container."""
    parts = PurePosixPath(container, name).parts
    if any(part in ("..", "/") or "\0" in part or "\\" in part for part in parts) or name.startswith("/"):
        raise AzureError(400, "InvalidResourceName", f"{name!r} is not the name of a blob")
    return local.blobs.joinpath(*parts)


def address(local: cloud.Cloud, container: str, name: str) -> str:
    """Return the address, signature included, at which a blob can be read."""
    return f"{local.origin}/{ACCOUNT}.blob.{cloud.STORAGE_SUFFIX}/{container}/{name}?{signature(local)}"


def _metadata_file(local: cloud.Cloud, container: str, name: str) -> Path:
    digest = hashlib.sha256(f"{container}/{name}".encode()).hexdigest()
    return local.folder / "blob-metadata" / f"{digest}.json"


def _headers(local: cloud.Cloud, container: str, name: str) -> dict[str, str]:
    file = place(local, container, name)
    if not file.is_file():
        raise AzureError(404, "BlobNotFound", f"no blob {name!r} in the container {container!r}")
    found = file.stat()
    metadata = _metadata_file(local, container, name)
    saved = json.loads(metadata.read_text()) if metadata.exists() else {}
    return {
        "ETag": f'"0x{found.st_mtime_ns:X}"',
        "Last-Modified": formatdate(found.st_mtime, usegmt=True),
        "x-ms-creation-time": formatdate(found.st_ctime, usegmt=True),
        "x-ms-blob-type": "BlockBlob",
        "x-ms-version": VERSION,
        "x-ms-server-encrypted": "true",
        "Accept-Ranges": "bytes",
        **{f"x-ms-meta-{key}": value for key, value in saved.items()},
    }


@router.head("")
@router.get("")
def container(
    request: Request, container: str, comp: str = "", prefix: str = "", delimiter: str = ""
) -> Response:
    """Return that a container is there, or the list of its blobs as XML."""
    local = cloud.current(request)
    if comp != "list":
        return Response(headers={"ETag": '"0x1"', "Last-Modified": formatdate(0, usegmt=True)})
    root = place(local, container, "")
    names = sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())
    return Response(_listing(local, container, [n for n in names if n.startswith(prefix)], prefix, delimiter))


def _listing(local: cloud.Cloud, container: str, names: list[str], prefix: str, delimiter: str) -> bytes:
    results = ElementTree.Element("EnumerationResults", ContainerName=container)
    ElementTree.SubElement(results, "Prefix").text = prefix
    blobs = ElementTree.SubElement(results, "Blobs")
    folders = set()
    for name in names:
        rest = name.removeprefix(prefix)
        if delimiter and delimiter in rest:
            folder = prefix + rest.split(delimiter)[0] + delimiter
            if folder not in folders:
                folders.add(folder)
                ElementTree.SubElement(ElementTree.SubElement(blobs, "BlobPrefix"), "Name").text = folder
            continue
        _entry(
            ElementTree.SubElement(blobs, "Blob"), name, _headers(local, container, name), local, container
        )
    ElementTree.SubElement(results, "NextMarker")
    return ElementTree.tostring(results, encoding="utf-8", xml_declaration=True)


def _entry(blob: ElementTree.Element, name: str, headers: dict, local: cloud.Cloud, container: str) -> None:
    ElementTree.SubElement(blob, "Name").text = name
    properties = ElementTree.SubElement(blob, "Properties")
    size = place(local, container, name).stat().st_size
    values = {"Last-Modified": headers["Last-Modified"], "Etag": headers["ETag"], "Content-Length": str(size)}
    for key, value in {**values, "BlobType": "BlockBlob"}.items():
        ElementTree.SubElement(properties, key).text = value
    metadata = ElementTree.SubElement(blob, "Metadata")
    for key, value in headers.items():
        if key.startswith("x-ms-meta-"):
            ElementTree.SubElement(metadata, key.removeprefix("x-ms-meta-")).text = value


@router.put("")
def make_container(container: str) -> Response:
    """Refuse: a workspace's containers are there from the start."""
    raise AzureError(409, "ContainerAlreadyExists", f"the container {container!r} is there already")


@router.head("/{name:path}")
def properties(request: Request, container: str, name: str) -> Response:
    """Return a blob's headers."""
    local = cloud.current(request)
    headers = _headers(local, container, name)
    size = place(local, container, name).stat().st_size
    return Response(headers={**headers, "Content-Length": str(size)})


@router.get("/{name:path}")
def read(request: Request, container: str, name: str) -> Response:
    """Return a blob, or the range of it that is asked for."""
    local = cloud.current(request)
    headers = _headers(local, container, name)
    file = place(local, container, name)
    if wanted := request.headers.get("x-ms-range") or request.headers.get("range"):
        return _part(file, wanted, headers)
    return FileResponse(file, headers=headers, media_type="application/octet-stream")


def _part(file: Path, wanted: str, headers: dict) -> Response:
    size = file.stat().st_size
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    if not first.isdigit() or int(first) >= size:
        message = f"the range {wanted!r} is not within {size} bytes"
        raise AzureError(416, "InvalidRange", message, headers={"Content-Range": f"bytes */{size}"})
    start, stop = int(first), min(int(last) + 1 if last.isdigit() else size, size)
    with file.open("rb") as stream:
        stream.seek(start)
        content = stream.read(stop - start)
    headers = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
    return Response(content, 206, headers, "application/octet-stream")


@router.put("/{name:path}")
async def write(request: Request, container: str, name: str, comp: str = "", blockid: str = "") -> Response:
    """Write a blob whole, one block of it, its list of blocks, or its metadata."""
    local = cloud.current(request)
    if comp not in ("", "block", "blocklist", "metadata"):
        raise AzureError(501, "NotImplemented", f"PUT ?comp={comp} of a blob is not part of the stand-in")
    if int(request.headers.get("content-length") or 0) > BLOCK_LIMIT:
        raise AzureError(
            413, "RequestBodyTooLarge", f"at most {BLOCK_LIMIT} bytes in one request; send blocks"
        )
    content = await request.body()
    metadata = {k[10:]: v for k, v in request.headers.items() if k.startswith("x-ms-meta-")}
    return await run_in_threadpool(_write, local, container, name, comp, blockid, content, metadata)


def _write(
    local, container: str, name: str, comp: str, blockid: str, content: bytes, metadata: dict
) -> Response:
    file = place(local, container, name)
    if comp == "block":
        _save(_block(local, container, name, blockid), content)
        return Response(status_code=201)
    if comp == "metadata":
        _headers(local, container, name)
    elif comp == "blocklist":
        _join(local, container, name, ElementTree.fromstring(content))
    else:
        _save(file, content)
    if metadata or comp == "metadata":
        _save(_metadata_file(local, container, name), json.dumps(metadata).encode())
    digest = base64.b64encode(hashlib.md5(content).digest()).decode()
    headers = {
        **_headers(local, container, name),
        "x-ms-request-server-encrypted": "true",
        "Content-MD5": digest,
    }
    return Response(status_code=200 if comp == "metadata" else 201, headers=headers)


def _save(file: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name[:100]}.{uuid.uuid4().hex}")
        part.write_bytes(content)
        part.replace(file)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise AzureError(409, "PathConflict", f"{file.name!r} is a folder or lies below a blob") from None


def _block(local: cloud.Cloud, container: str, name: str, blockid: str) -> Path:
    digest = hashlib.sha256(f"{container}/{name}".encode()).hexdigest()
    return local.folder / "blob-blocks" / digest / hashlib.sha256(blockid.encode()).hexdigest()


def _join(local: cloud.Cloud, container: str, name: str, block_list: ElementTree.Element) -> None:
    file = place(local, container, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name[:100]}.{uuid.uuid4().hex}")
    with part.open("wb") as stream:
        for entry in block_list:
            block = _block(local, container, name, entry.text or "")
            if not block.exists():
                part.unlink()
                raise AzureError(400, "InvalidBlockList", f"the block {entry.text!r} was not sent")
            with block.open("rb") as source:
                shutil.copyfileobj(source, stream)
    part.replace(file)
    shutil.rmtree(_block(local, container, name, "").parent, ignore_errors=True)


@router.delete("/{name:path}")
def delete(request: Request, container: str, name: str) -> Response:
    """Delete a blob."""
    local = cloud.current(request)
    _headers(local, container, name)
    place(local, container, name).unlink()
    _metadata_file(local, container, name).unlink(missing_ok=True)
    return Response(status_code=202)
