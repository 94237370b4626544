"""What Azure makes of assets, as the SDK shows them: code, components, environments, folders."""

import re

import pytest

CURATED = "azureml:AzureML-sklearn-1.0-ubuntu20.04-py38-cpu:33"
BINDING = "${{parent.inputs.node_compute}}"


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """A folder with a program."""
    made = tmp_path_factory.mktemp("src")
    (made / "hello.py").write_text("print('hello')\n")
    return made


@pytest.fixture
def other_code(tmp_path):
    """A folder with another program."""
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "hello.py").write_text("print('good day')\n")
    return folder


@pytest.fixture(scope="module")
def step(code):
    """A function that returns a component of a command, not yet registered."""
    from azure.ai.ml.entities import CommandComponent

    def make(name: str, version: str | None = "1", **options):
        given = {"command": "python hello.py", "code": code, "environment": CURATED, **options}
        return CommandComponent(name=name, version=version, **given)

    return make


def register(client, component, **options):
    return client.components.create_or_update(component, **options)


# code


def test_the_same_code_uploaded_twice_is_one_code(client, step):
    assert register(client, step("coded")).code == register(client, step("coded_too")).code


def test_code_is_downloaded_whole(client, step, tmp_path):
    name, version = register(client, step("fetched")).code.split("/")[-3::2]
    client._code.download(name, version, download_path=tmp_path / "code")
    assert (tmp_path / "code/hello.py").read_text() == "print('hello')\n"


def test_the_files_of_a_version_of_code_are_fixed(client, tmp_path):
    from azure.ai.ml.entities._assets import Code

    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
        (folder / "only.py").write_text(folder.name)
    client._code.create_or_update(Code(name="fixed", version="1", path=folders[0]))
    with pytest.raises(Exception, match="cannot be"):
        client._code.create_or_update(Code(name="fixed", version="1", path=folders[1]))
    assert client._code.get("fixed", "1").path.endswith("/first")


# components


def test_a_component_with_other_code_is_refused_under_its_old_version(client, step, other_code):
    register(client, step("changing"))
    with pytest.raises(Exception, match="the field 'code' of the component changing:1 is immutable"):
        register(client, step("changing", code=other_code))


def test_a_component_may_get_another_description_under_its_old_version(client, step):
    register(client, step("described"))
    assert register(client, step("described", description="says hello")).description == "says hello"


def test_components_without_a_version_get_1_and_then_the_time(client, step):
    made = [register(client, step("counted", version=None)).version for _ in range(2)]
    assert made[0] == "1"
    assert re.fullmatch(r"\d{4}(-\d\d){5}-\d{7}", made[1])


@pytest.mark.parametrize("label", [None, "default"])
def test_a_component_without_a_label_or_version_is_the_newest(client, step, label):
    for version in ("1", "2"):
        register(client, step("labelled", version=version))
    found = client.components.get("labelled", label=label)
    assert (found.version, found.id.rpartition("/components/")[2]) == ("2", "labelled/labels/default")


def test_a_component_that_has_not_changed_gets_no_version_if_asked(client, step):
    for version in ("1", "2"):
        register(client, step("same", version=version), skip_if_no_change=True)
    assert [found.version for found in client.components.list("same")] == ["1"]


def test_a_component_of_the_same_content_and_no_name_of_its_own_is_used_again(client, step):
    made = [register(client, step("unnamed"), is_anonymous=True).id for _ in range(2)]
    other = register(client, step("unnamed", command="python hello.py again"), is_anonymous=True).id
    assert made[0] == made[1] != other


def test_a_component_is_downloaded_with_its_code_and_environment(client, step, tmp_path):
    from azure.ai.ml.entities import Environment

    client.environments.create_or_update(Environment(name="taken_along", version="1", image="python:3.11"))
    register(client, step("portable", environment="azureml:taken_along:1"))
    client.components.download("portable", download_path=tmp_path / "it", version="1")
    assert (tmp_path / "it/code/hello.py").exists()
    assert "python:3.11" in (tmp_path / "it/component_spec.yaml").read_text()


def test_the_counts_of_a_components_distribution_are_text(client, step):
    from azure.ai.ml import PyTorchDistribution

    of_four = PyTorchDistribution(process_count_per_instance=4)
    made = register(client, step("spread", distribution=of_four, instance_count=2))
    assert made.distribution.process_count_per_instance == "4"
    assert made.resources.instance_count == 2


@pytest.mark.parametrize("sent", [2.0, "2.0"])
def test_a_count_that_is_not_written_as_a_whole_number_is_kept_as_one(http, arm, client, step, sent):
    path = register(client, step("odd")).id
    properties = http.get(path).json()["properties"]
    properties["componentSpec"]["resources"] = {"instance_count": sent}
    changed = http.put(path, json={"properties": properties}).json()["properties"]["componentSpec"]
    assert changed["resources"]["instance_count"] == "2"


def test_a_curated_environment_of_a_component_is_the_registrys(client, step):
    made = register(client, step("curated"))
    name = "AzureML-sklearn-1.0-ubuntu20.04-py38-cpu"
    assert made.environment == f"azureml://registries/azureml/environments/{name}/versions/33"


def test_a_pipeline_component_keeps_the_binding_of_a_nodes_compute(client, tmp_path):
    from azure.ai.ml import load_component

    (tmp_path / "pipeline.yml").write_text(
        f"""
type: pipeline
name: bound
version: 1
inputs:
  node_compute: {{type: string, default: azureml:cpu-cluster}}
jobs:
  greet:
    type: command
    compute: {BINDING}
    component:
      command: echo hello
      environment: {CURATED}
"""
    )
    made = register(client, load_component(tmp_path / "pipeline.yml"))
    assert made.jobs["greet"].compute == BINDING
    assert made.inputs["node_compute"].default == "cpu-cluster"


def test_a_pipeline_component_made_of_a_job_is_refused_by_name(client, arm):
    from azure.ai.ml.entities import PipelineComponent
    from azure.core.exceptions import HttpResponseError

    with pytest.raises(HttpResponseError, match="a pipeline component made of a job") as refused:
        register(client, PipelineComponent(name="of_a_job", source_job_id=f"{arm.workspace}/jobs/done"))
    assert refused.value.status_code == 501


# environments and data


def test_an_environment_of_other_content_gets_the_next_version(client):
    from azure.ai.ml.entities import Environment

    images = ("python:3.11", "python:3.11", "python:3.12")
    made = [client.environments.create_or_update(Environment(name="grown", image=image)) for image in images]
    assert [environment.version for environment in made] == ["1", "1", "2"]


def test_the_content_of_a_version_of_an_environment_is_fixed(client):
    from azure.ai.ml.entities import Environment
    from azure.core.exceptions import ResourceExistsError

    client.environments.create_or_update(Environment(name="set", version="1", image="python:3.11"))
    with pytest.raises(ResourceExistsError, match="version 1 and cannot be changed"):
        client.environments.create_or_update(Environment(name="set", version="1", image="python:3.12"))


def test_the_address_of_a_docker_context_ends_with_its_folder(client, code):
    from azure.ai.ml.entities import BuildContext, Environment

    (code / "Dockerfile").write_text("FROM python:3.11\n")
    made = client.environments.create_or_update(Environment(name="built", build=BuildContext(path=code)))
    assert made.build.path.endswith(f"/{code.name}/")


@pytest.mark.parametrize("kind", ["uri_folder", "mltable"])
def test_the_address_of_a_folder_of_data_ends_with_a_slash(client, tmp_path, kind):
    from azure.ai.ml.entities import Data

    (tmp_path / "MLTable").write_text("type: mltable\npaths: [{file: ./a.csv}]\n")
    (tmp_path / "a.csv").write_text("a\n1\n")
    made = client.data.create_or_update(Data(name=f"a_{kind}", version="1", path=tmp_path, type=kind))
    assert made.path.endswith(f"/{tmp_path.name}/")


def test_models_are_found_by_their_stage(client, code):
    from azure.ai.ml.entities import Model

    for version, stage in (("1", "Production"), ("2", None)):
        client.models.create_or_update(Model(name="staged", version=version, path=code, stage=stage))
    assert [model.version for model in client.models.list("staged", stage="Production")] == ["1"]
