"""A job's environment is one of its own, made of its specification; packages come from a folder of wheels."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from clients import ended, log_of, make_command, reason, wheel
from conftest import client_of, point
from packaging.requirements import Requirement

from local_azureml.cli import parse
from local_azureml.conda import read, specification
from local_azureml.control_plane import registry
from local_azureml.engine.install import find_uv
from local_azureml.errors import AzureError
from local_azureml.server import Server

OWN = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Path]:
    """The folder of an emulator whose installer finds two versions of `localmade`, and nothing else."""
    shelf = tmp_path_factory.mktemp("wheels")
    for version in ("1.0", "2.0"):
        wheel(shelf, "localmade", version)
    empty = tmp_path_factory.mktemp("index").as_uri()  # of no index at all uv is not told
    only_there = {"PIP_INDEX_URL": empty, "PIP_FIND_LINKS": str(shelf), "PIP_CONFIG_FILE": "/dev/null"}
    with pytest.MonkeyPatch.context() as patch:
        point(patch, only_there)
        folder = tmp_path_factory.mktemp("stocked")
        with Server(parse(["serve", "--poll", "0.1"]), folder) as server:
            point(patch, server.context.environment())
            yield folder


@pytest.fixture(scope="module")
def client(served):
    return client_of()


def made_of(*lines: str, name: str = "made", **options):
    """Return an environment with a conda file of these lines, those after "pip:" for pip."""
    from azure.ai.ml.entities import Environment

    of_conda, of_pip = (
        (lines[: lines.index("pip:")], lines[lines.index("pip:") + 1 :]) if "pip:" in lines else (lines, ())
    )
    dependencies = [*of_conda, *([{"pip": list(of_pip)}] if of_pip else [])]
    return Environment(
        name=name, image="ubuntu", conda_file={"name": "x", "dependencies": dependencies}, **options
    )


LINES = (f"python={OWN}", "pip", "pip:", "localmade==1.0")
SHOW = "python -c 'import localmade; print(localmade.VERSION, localmade.__file__)'"


@pytest.fixture(scope="module")
def logs(client, tmp_path_factory) -> list[str]:
    """What two jobs said whose environments have other names and the same conda file."""
    text, texts = f"{SHOW}; python -c 'import fastapi' || echo alone", []
    for name in ("one", "another"):
        job = ended(client, make_command(text, environment=made_of(*LINES, name=name)))
        texts.append(log_of(client, job, tmp_path_factory.mktemp(name)))
    return texts


def test_a_command_runs_in_the_environment_that_its_conda_file_asks_for(served, logs):
    shown = next(line for line in logs[0].splitlines() if line.startswith("1.0 "))
    assert shown.startswith(f"1.0 {served}/environments/")


def test_an_environment_has_nothing_of_the_emulator(logs):
    assert logs[0].splitlines()[-1] == "alone"


def test_an_environment_is_made_once(logs):
    assert ": reused" in logs[1] and "made in" not in logs[1]


def test_what_a_job_installs_or_writes_in_its_environment_is_no_other_jobs(client, tmp_path):
    left = "import localmade, pathlib, site; pathlib.Path(site.getsitepackages()[0], 'left.py').touch()"
    write = f'pip install localmade==2.0 && python -c "{left}; print(localmade.VERSION)"'
    job = ended(client, make_command(write, environment=made_of(*LINES)))
    assert log_of(client, job, tmp_path / "first").splitlines()[-1] == "2.0"
    look = "import importlib.util, localmade; print(localmade.VERSION, importlib.util.find_spec('left'))"
    job = ended(client, make_command(f'python -c "{look}"', environment=made_of(*LINES)))
    assert log_of(client, job, tmp_path / "second").splitlines()[-1] == "1.0 None"


def test_an_image_without_a_specification_is_named_and_what_a_job_installs_there_is_its_own(client, tmp_path):
    text = "pip install localmade==1.0 && python -c 'import fastapi, localmade; print(localmade.VERSION)'"
    lines = log_of(client, ended(client, make_command(text)), tmp_path).splitlines()
    words = "python:3.11, which has no conda file, is not available here; using the emulator's Python"
    assert (words in lines[0], lines[-1]) == (True, "1.0")
    found = subprocess.run([sys.executable, "-c", "import localmade"], capture_output=True)
    assert found.returncode == 1


@pytest.mark.skipif(not find_uv("another"), reason="pip can't be asked for the lowest version")
def test_a_python_that_is_not_here_is_named_and_what_there_is_not_for_the_one_in_its_place_is_the_next(
    client, tmp_path
):
    job = ended(client, make_command(SHOW, environment=made_of("python=3.2", "localmade=0.5")))
    log = log_of(client, job, tmp_path / "logs")
    assert f"Python 3.2 is not on this machine: {OWN} in its place" in log
    assert log.splitlines()[-1].startswith("1.0 ")


def test_a_curated_environment_asks_for_what_azure_says_and_a_package_that_cannot_be_had_is_named(client):
    name = "azureml://registries/azureml/environments/sklearn-1.5/labels/latest"
    words = reason(client, make_command("true", environment=name))
    assert "the environment can't be made" in words and "pandas~=1.5.3" in words


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("AzureML-sklearn-1.0-ubuntu20.04-py38-cpu", "sklearn-1.0"),
        ("AzureML-sklearn-1.5", "sklearn-1.5"),
        ("AzureML-ACPT-pytorch-1.13-py38-cuda11.7-gpu", "acpt-pytorch-1.13-cuda11.7"),
        ("tensorflow-2.12-cuda11", "tensorflow-2.12-cuda11"),
        ("lightgbm-3.2", "AzureML-lightgbm-3.2-ubuntu18.04-py37-cpu"),
    ],
)
def test_a_curated_environment_is_known_by_each_of_its_names(name, known):
    assert registry.specification_of(name).stem == known


def test_a_curated_environment_of_which_nothing_is_known_is_named_in_the_first_line_of_the_log(
    client, tmp_path
):
    job = ended(client, make_command("true", environment="AzureML-TensorFlow-2.3-GPU@latest"))
    first = log_of(client, job, tmp_path).splitlines()[0]
    assert "Azure's curated image is not available here; using the emulator's Python" in first


@pytest.mark.parametrize("file", registry.ENVIRONMENTS.values(), ids=lambda file: file.stem)
def test_what_is_known_of_a_curated_environment_can_be_read(file):
    asked = read(file.stem, file.read_text())
    assert yaml.safe_load(file.read_text())["name"] == file.stem
    assert [Requirement(line).name for line in asked["requirements"]] != []


def test_one_python_for_all_is_an_option(emulator_with, tmp_path):
    emulator_with(options=("--one-python",))
    job = ended(client_of(), make_command("python -c 'import fastapi'", environment=made_of("localmade=1.0")))
    assert job.status == "Completed"


def test_a_conda_file_that_cannot_be_read_is_refused(client):
    from azure.core.exceptions import HttpResponseError

    with pytest.raises(HttpResponseError, match=r"the conda file of the environment .* can't be read"):
        client.jobs.create_or_update(make_command("true", environment=made_of({"pip": 3})))


ALIASES = "\n".join(
    ["a: &a [x]", *(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise("abcdefghi"))]
)


@pytest.mark.parametrize(
    "text",
    [
        f"{ALIASES}\ndependencies: [{{pip: [*i]}}]",
        f"dependencies: {'[' * 50_000}",
        "dependencies: [" + "x, " * 50_000 + "]",
        "dependencies: 2024-99-99",
    ],
    ids=["aliases", "deep", "long", "no date"],
)
def test_a_conda_file_that_takes_longer_to_read_than_it_is_long_is_refused(text):
    with pytest.raises(AzureError, match="can't be read") as raised:
        read("made", text)
    assert raised.value.status == 400


@pytest.mark.parametrize(
    ("conda", "python", "requirements"),
    [
        (["python=3.8", "numpy=1.21.2"], "3.8", ["numpy==1.21.2.*"]),
        (["python>=3.9,<3.12", "pandas>=1.1,<1.2"], "3.9", ["pandas>=1.1,<1.2"]),
        (["python==3.10.4", "joblib==1.2"], "3.10.4", ["joblib==1.2"]),
        (["scikit-learn=1.2.2", "numpy"], None, ["scikit-learn==1.2.2.*", "numpy", "numpy<2"]),
        (["scipy==1.13.1", "numpy"], None, ["scipy==1.13.1", "numpy"]),
        (["conda-forge::pytorch=1.13=py38_0", "pip=21.2.4"], None, ["torch==1.13.*"]),
        (["python 3.8", "scikit-learn"], "3.8", ["scikit-learn"]),
        (["matplotlib-base=3.9.*"], None, ["matplotlib==3.9.*"]),
        (["pandas==1.5.3,<2"], None, ["pandas==1.5.3,<2", "numpy<2"]),
        (["scipy==1.10.*,!=1.10.1"], None, ["scipy==1.10.*,!=1.10.1", "numpy<2"]),
        (["scikit-learn==x.y"], None, ["scikit-learn==x.y"]),
    ],
)
def test_what_conda_asks_for_is_said_in_pips_words(conda, python, requirements):
    assert specification(conda, ["x"]) == {"python": python, "requirements": [*requirements, "x"]}
