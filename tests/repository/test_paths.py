"""Where a name from outside may lead: every spelling, as one function and through the doors that take it."""

import json
import os
import re
import shutil
import time
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from conftest import PLAIN_JOB
from hypothesis import given, settings
from hypothesis import strategies as some

from local_azureml.control_plane.jobs import FINAL
from local_azureml.paths import OutsideError, inside

CONTAINER = "azureml-blobstore"
STORE = f"/store.blob.storage.local/{CONTAINER}"
SPECIAL = ["", ".", "..", "...", "a", "A", "C:", "c:\\", "a\\..", "\\\\host\\share", "~", "\0", "a\0b", "\n"]
SPECIAL += ["caf\u00e9", "cafe\u0301", "link", "loop", "sub", "canary", "%2e%2e", "%2f", "x" * 300, "\ud800"]
NAMES = some.lists(some.sampled_from(SPECIAL) | some.text(max_size=3), min_size=1, max_size=5).map("/".join)


def escaping(folder: Path) -> list[str]:
    """Return names, absolute ones among them, that a careless join takes to the folder next to a root."""
    return [
        *(f"{slashes}{folder}/canary" for slashes in ("", "/", "//")),
        *(f"{above}{folder.name}/canary" for above in ("../", "./../", "a/../../", "../root/../")),
        *("link/canary", "sub/link/canary", "dangling"),
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder with links that lead out of it, next to one with a canary."""
    above = tmp_path_factory.mktemp("places")
    root, outside = above / "root", above / "outside"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "canary").write_text("alive")
    (root / "link").symlink_to(outside)
    (root / "sub" / "link").symlink_to("../../outside")
    (root / "dangling").symlink_to(outside / "not-yet")
    (root / "loop").symlink_to("loop")
    return root


@settings(max_examples=500, deadline=None)
@given(data=some.data())
def test_no_spelling_leads_out_of_the_root(root, data):
    name = data.draw(some.sampled_from(escaping(root.parent / "outside")) | NAMES)
    for spelling in (name, unquote(name), quote(name, safe="", errors="surrogatepass")):
        try:
            place = inside(root, spelling)
        except OutsideError:
            continue
        assert Path(os.path.realpath(place)).is_relative_to(root.resolve())
        assert os.path.realpath(place) == os.path.normpath(root.resolve() / spelling)


@settings(max_examples=200, deadline=None)
@given(names=some.tuples(NAMES, NAMES))
def test_two_names_never_lead_to_one_place(root, names):
    """Names that are equal but for case or normal form, too, where the file system tells them apart."""
    places = []
    for name in names:
        try:
            places.append(inside(root, name))
        except OutsideError:
            return
    assert (places[0] == places[1]) == (names[0] == names[1])


def test_a_known_escape_is_refused(root):
    for name in escaping(root.parent / "outside"):
        with pytest.raises(OutsideError):
            inside(root, name)


@pytest.fixture
def canary(tmp_path) -> Path:
    file = tmp_path / "canary.txt"
    file.write_text("alive")
    return file


@pytest.fixture(scope="module")
def signature(client) -> str:
    return client.datastores.get_default(include_secrets=True).credentials.sas_token


def spellings(file: Path) -> list[str]:
    """Return names of blobs that lead to a file, if the name is taken for a path."""
    encoded = quote(str(file), safe="")
    return [f"/{file}", f"//{file}", quote(f"/{file}", safe=""), f"%2F{encoded}", f"./{file}"]


def test_no_blobs_name_leads_to_a_file_outside(anonymous, signature, canary):
    for name in spellings(canary):
        address = f"{STORE}/{name}?{signature}"
        sent = {method: anonymous.request(method, address) for method in ("GET", "HEAD", "DELETE")}
        sent["PUT"] = anonymous.put(address, content=b"dead")
        assert {answer.status_code for answer in sent.values()} <= {400, 404}
        assert sent["GET"].text != "alive" and canary.read_text() == "alive"


@pytest.fixture
def addresses(canary) -> list[str]:
    """Addresses of what lies outside the storage."""
    store = "https://localhost:1/store.blob.storage.local"
    return [
        *(f"azureml://datastores/workspaceblobstore/paths/{name}" for name in spellings(canary)),
        "azureml://datastores/workspaceblobstore/paths/../../secrets.json",
        "azureml://datastores/workspaceblobstore/paths/%2e%2e/%2e%2e/secrets.json",
        "azureml://jobs/x/outputs/y/../../../secrets.json",
        *("file:///etc/passwd", "/etc/passwd"),
        *(f"{store}/{name}" for name in ("azureml-blobstore/..%2F..%2Fsecrets.json", "../secrets.json")),
    ]


def test_no_job_reads_an_input_from_outside_the_storage(http, arm, addresses):
    reasons = "is not the name of a blob|is not an address|no job named|no container"
    jobs = [f"{arm.workspace}/jobs/curious-{number}" for number in range(len(addresses))]
    answers = []
    for job, address in zip(jobs, addresses, strict=True):
        inputs = {"secret": {"jobInputType": "uri_file", "uri": address}}
        body = PLAIN_JOB | {"command": "cat ${{inputs.secret}}", "inputs": inputs}
        answers.append(http.put(job, json={"properties": body}))
    for job, answer in zip(jobs, answers, strict=True):
        error = answer.json().get("error")
        if answer.status_code == 201:
            while http.get(job).json()["properties"]["status"] not in FINAL:
                time.sleep(0.1)
            error = http.get(f"/history/v1.0{job.replace('/jobs/', '/runs/')}").json()["error"]["error"]
        assert re.search(reasons, error["message"])


def test_no_deployment_serves_a_model_from_outside_the_storage(http, arm, addresses):
    path = f"{arm.workspace}/onlineEndpoints/curious"
    http.put(path, json={"location": "eastus", "properties": {"authMode": "Key"}})
    for address in addresses:
        body = {"location": "eastus", "properties": {"model": address, "instanceType": "Standard_DS3_v2"}}
        assert http.put(f"{path}/deployments/demo", json=body).status_code in (400, 404), address


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_in_a_folder_of_blobs_leads_nowhere_outside(
    anonymous, environment, signature, canary, client, kind
):
    """What a job leaves among its outputs may hold links; a listing goes on without them."""
    folder = Path(environment["HF_HOME"]).parent / "blobs" / CONTAINER / f"links-to-{kind}"
    folder.mkdir(parents=True)
    (folder / "plain").write_text("x")
    (folder / "link").symlink_to(canary if kind == "file" else canary.parent)
    name = f"{folder.name}/link" + ("/canary.txt" if kind == "folder" else "")
    for method in ("GET", "DELETE", "PUT"):
        assert anonymous.request(method, f"{STORE}/{name}?{signature}").status_code in (400, 404)
    listing = anonymous.get(f"{STORE}?restype=container&comp=list&prefix={folder.name}/&{signature}").text
    assert (f"{folder.name}/plain" in listing, f"{folder.name}/link" in listing) == (True, False)
    assert canary.read_text() == "alive"
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["../{canary}", "{folder}/{canary}"])
def test_a_models_index_names_no_file_outside_its_folder(tmp_path, canary, name):
    from local_azureml.engine.chat_completion import checkpoint
    from local_azureml.engine.processes import UserError

    model = tmp_path / "model"
    model.mkdir()
    named = name.format(folder=tmp_path, canary=canary.name)
    index = json.dumps({"weight_map": {"weight": named}})
    (model / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=r"canary\.txt"):
        checkpoint.weight_files(model)
