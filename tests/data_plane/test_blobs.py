"""Blob storage, through Azure's storage library and by hand."""

import os
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import client_of

CONTAINER = "azureml-blobstore"
STORE = f"/store.blob.storage.local/{CONTAINER}"


@pytest.fixture(scope="module")
def signature(client) -> str:
    """What the default datastore gives out for its blobs."""
    return client.datastores.get_default(include_secrets=True).credentials.sas_token


def open_container(client, **options):
    """Return the default datastore's container, opened as the SDK does it."""
    from azure.storage.blob import ContainerClient

    store = client.datastores.get_default(include_secrets=True)
    address = f"https://{store.account_name}.blob.{store.endpoint}/{store.container_name}"
    return ContainerClient.from_container_url(f"{address}?{store.credentials.sas_token}", **options)


@pytest.fixture(scope="module")
def container(client):
    with open_container(client, max_single_put_size=64, max_block_size=32) as opened:
        yield opened


@pytest.mark.parametrize("size", [0, 1, 64, 65, 1000])
def test_a_blob_comes_back_as_it_was_written_whole_or_in_blocks(container, size):
    content = os.urandom(size)
    container.upload_blob(f"sizes/{size}", content)
    assert container.download_blob(f"sizes/{size}").readall() == content


def test_a_range_is_read_by_itself_and_one_beyond_the_end_is_refused(container):
    from azure.core.exceptions import HttpResponseError

    container.upload_blob("digits", b"0123456789")
    assert container.download_blob("digits", offset=3, length=4).readall() == b"3456"
    with pytest.raises(HttpResponseError) as raised:
        container.download_blob("digits", offset=10, length=1)
    assert raised.value.status_code == 416


def test_a_blob_that_is_there_is_not_overwritten_unasked(container):
    from azure.core.exceptions import ResourceExistsError

    container.upload_blob("once", b"first", overwrite=True)
    with pytest.raises(ResourceExistsError):
        container.upload_blob("once", b"second")


def test_a_listing_goes_by_prefix_and_a_walk_shows_folders_once(container):
    names = ["tree/a", "tree/b/c", "tree/b/größe #1 100%.txt"]
    for name in (*names, "other/a"):
        container.upload_blob(name, b"x")
    assert list(container.list_blob_names(name_starts_with="tree/")) == names
    assert sorted(found.name for found in container.walk_blobs("tree/")) == ["tree/a", "tree/b/"]


@pytest.mark.parametrize(
    ("name", "value"), [("a&b", "1"), ("1a", "1"), ("a-b", "1"), ("a", "\x01"), ("a", "\x9b2J")]
)
def test_metadata_that_a_listing_could_not_show_is_refused_before_a_blob_is_written(
    http, signature, container, name, value
):
    kind = {"x-ms-blob-type": "BlockBlob", f"x-ms-meta-{name}": value.encode("latin-1")}
    told = http.put(f"{STORE}/odd-metadata?{signature}", content=b"x", headers=kind)
    assert (told.status_code, told.headers["x-ms-error-code"]) == (400, "InvalidMetadata")
    assert "odd-metadata" not in [blob.name for blob in container.list_blobs()]


def test_metadata_is_kept_and_replaced_whole(container):
    blob = container.upload_blob("noted", b"x", metadata={"upload_status": "completed"})
    assert blob.get_blob_properties().metadata == {"upload_status": "completed"}
    blob.set_blob_metadata({"b": "2"})
    assert blob.get_blob_properties().metadata == {"b": "2"}


def test_a_deleted_blob_is_not_found(container):
    from azure.core.exceptions import ResourceNotFoundError

    container.upload_blob("doomed", b"x").delete_blob()
    with pytest.raises(ResourceNotFoundError) as raised:
        container.download_blob("doomed")
    assert raised.value.error_code == "BlobNotFound"


def test_a_list_of_blocks_that_were_not_sent_is_refused(container):
    from azure.core.exceptions import HttpResponseError
    from azure.storage.blob import BlobBlock

    with pytest.raises(HttpResponseError) as raised:
        container.get_blob_client("holes").commit_block_list([BlobBlock("never")])
    assert raised.value.error_code == "InvalidBlockList"


def test_the_containers_of_a_workspace_cannot_be_made_again(container):
    from azure.core.exceptions import ResourceExistsError

    with pytest.raises(ResourceExistsError):
        container.create_container()


@pytest.mark.parametrize("query", ["", "?sig=guess", "?sv=2024-11-04&sig="])
def test_without_the_signature_nothing_is_read_or_written(anonymous, query):
    answers = [anonymous.request(method, f"{STORE}/digits{query}") for method in ("GET", "PUT", "DELETE")]
    assert [answer.status_code for answer in answers] == [403, 403, 403]


@pytest.mark.parametrize(
    "name",
    ["..%2F..%2Fsecrets.json", "a/..%2F..%2F..%2Fsecrets.json", "%2Fetc/passwd", "a%5C..%5Cb"],
)
def test_a_name_that_leaves_its_container_is_refused(anonymous, signature, name):
    answers = [
        anonymous.request(method, f"{STORE}/{name}?{signature}") for method in ("GET", "PUT", "DELETE")
    ]
    assert {answer.status_code for answer in answers} <= {400, 404}


def test_a_container_that_leaves_the_storage_is_refused(anonymous, signature):
    container = quote("..", safe="")
    answer = anonymous.get(f"/store.blob.storage.local/{container}/secrets.json?{signature}")
    assert answer.status_code in (401, 403)


@pytest.mark.parametrize("character", ["%00", "%01", "%09", "%0D", "%1F", "%EF%BF%BE"])
def test_a_name_that_no_listing_can_show_is_refused(container, anonymous, signature, character):
    answer = anonymous.put(f"{STORE}/odd{character}name?{signature}", content=b"x")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "InvalidResourceName")
    assert not list(container.list_blob_names(name_starts_with="odd"))


def test_a_name_may_have_1024_bytes(container, anonymous, signature):
    name = "/".join(["long" * 50] * 5)
    container.upload_blob(name, b"x", overwrite=True)
    answer = anonymous.put(f"{STORE}/{name}/{name}?{signature}", content=b"x")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "InvalidResourceName")


def test_a_file_of_a_job_that_no_blob_can_be_named_after_is_not_listed(container, environment):
    folder = Path(environment["HF_HOME"]).parent / "blobs" / CONTAINER / "listed"
    folder.mkdir(parents=True)
    for name in ("plain", "line\nend", "back\\slash"):
        (folder / name).touch()
    assert list(container.list_blob_names(name_starts_with="listed/")) == ["listed/plain"]


def test_names_are_told_apart_by_their_capitals(container):
    names = [f"capitals/subscriptions/{word}/f" for word in ("WORKSPACES", "Workspaces", "workspaces")]
    for name in names:
        container.upload_blob(name, name)
    assert list(container.list_blob_names(name_starts_with="capitals/")) == names
    assert [container.download_blob(name).readall().decode() for name in names] == names


@pytest.mark.parametrize(
    ("method", "query", "headers"),
    [
        *[("GET", f"comp={comp}", {}) for comp in ("tags", "blocklist", "metadata", "snapshot", "page")],
        *[("HEAD", "comp=metadata", {}), ("DELETE", "comp=tags", {})],
        *[("PUT", f"comp={comp}", {}) for comp in ("snapshot", "lease", "tags", "appendblock")],
        *[(method, "snapshot=2020-01-01T00:00:00.0Z", {}) for method in ("GET", "HEAD", "DELETE")],
        *[(method, "versionid=2020-01-01T00:00:00.0Z", {}) for method in ("GET", "HEAD", "DELETE")],
        *[("PUT", query, {"x-ms-copy-source": "https://localhost/x"}) for query in ("", "comp=block")],
        *[("PUT", "", {"x-ms-blob-type": kind}) for kind in ("AppendBlob", "PageBlob")],
        *[("PUT", "", {"x-ms-tags": "a=b"}), ("GET", "", {"x-ms-if-tags": "a='b'"})],
        *[("PUT", "", {"x-ms-lease-id": "x"}), ("DELETE", "", {"x-ms-delete-snapshots": "only"})],
    ],
)
def test_what_storage_does_not_play_is_said_and_changes_nothing(
    container, anonymous, signature, method, query, headers
):
    container.upload_blob("kept", b"before", overwrite=True)
    answer = anonymous.request(method, f"{STORE}/kept?{signature}&{query}", headers=headers)
    assert answer.status_code == 501
    assert method == "HEAD" or answer.json()["error"]["code"] == "NotImplemented"
    assert container.download_blob("kept").readall() == b"before"


@pytest.mark.parametrize(
    ("method", "comp"), [("GET", "acl"), ("GET", "metadata"), ("HEAD", "lease"), ("PUT", "acl")]
)
def test_what_a_container_does_not_play_is_said(anonymous, signature, method, comp):
    answer = anonymous.request(method, f"{STORE}?{signature}&restype=container&comp={comp}")
    assert answer.status_code == 501


def test_the_fault_upload_broken_breaks_an_upload_off(emulator_with):
    from azure.core.exceptions import AzureError

    emulator_with("upload-broken")
    with (
        open_container(client_of(), retry_total=0) as container,
        pytest.raises(AzureError, match="Connection"),
    ):
        container.upload_blob("a", b"x")


def test_what_azureml_fsspec_is_told_of_a_datastore_opens_it(http, arm, anonymous, emulator):
    """It asks in an older form, and then reads the blob: pandas.read_csv("azureml://…")."""
    file = emulator.folder / "blobs/azureml-blobstore/for-readers/a.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("a,b\n1,2\n")
    told = http.get(f"/datastore/v1.0{arm.workspace}/datastores/workspaceblobstore").json()
    section = told["azureStorageSection"]
    host = f"{section['accountName']}.blob.{section['endpoint']}"
    address = f"https://{host}/{section['containerName']}/for-readers/a.csv?{section['credential']}"
    assert (told["dataStoreType"], anonymous.get(address).text) == ("AzureBlob", "a,b\n1,2\n")
    asked = f"comp=list&delimiter=/&prefix={section['containerName']}/for-readers/"
    listed = anonymous.get(f"https://{host}?{asked}&{section['credential']}").text
    assert f"<Name>{section['containerName']}/for-readers/a.csv</Name>" in listed  # pandas.read_parquet
