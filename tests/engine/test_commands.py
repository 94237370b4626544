"""What a command job asks for is done, or refused by name."""

import time
from pathlib import Path

import pytest
from clients import SHORT, ended, log_of, make_command, reason
from conftest import client_of


def folder(**options):
    from azure.ai.ml import Output

    return Output(type="uri_folder", **options)


def texts_of(client, job, output: str, place) -> list[str]:
    """Return what the files of a job's output hold."""
    client.jobs.download(job.name, download_path=place, output_name=output)
    return [file.read_text() for file in (place / "named-outputs" / output).rglob("*.txt")]


@pytest.fixture(scope="module")
def nested(client):
    """A pipeline with a pipeline in it, values, a group of inputs, and a node with a place of its own."""
    from azure.ai.ml import Input, Output, dsl
    from azure.ai.ml.dsl._group_decorator import group  # mldesigner gives it in public
    from azure.ai.ml.entities import CommandComponent, Environment

    @group
    class Sizes:
        wide: int
        high: int = 4

    words = {"word": Input(type="string"), "times": Input(type="integer", default=3)}
    values = {"word": {"type": "string"}, "times": {"type": "integer"}}
    text = "echo -n ${{inputs.word}}${{inputs.times}} > ${{outputs.made}}/a.txt"
    write = make_command(text, inputs=words, outputs={"made": folder()})
    text = "cat ${{inputs.given}}/a.txt ${{inputs.given}}/a.txt > ${{outputs.made}}/a.txt"
    double = make_command(text, inputs={"given": Input(type="uri_folder")}, outputs={"made": folder()})
    text = "echo ${{inputs.word}}c > ${{outputs.word}}; echo 8 > ${{outputs.times}}"
    plain = Environment(image="python:3.11")
    work = CommandComponent(name="work", command=text, environment=plain, inputs=values, outputs=values)
    place = "azureml://datastores/workspaceblobstore/paths/of-nodes/${{name}}/${{output_name}}"

    @dsl.pipeline
    def inner(word: str, ending: str = "d"):
        return {"doubled": double(given=write(word=word).outputs.made).outputs.made}

    @dsl.pipeline(compute=SHORT, default_datastore="workspaceartifactstore")
    def outer(word: str, where: str, sizes: Sizes):
        first = inner(word=word)
        worked = work(word=word, times=7)
        told = write(word=worked.outputs.word, times=worked.outputs.times)
        placed = write(word=sizes.wide, times=sizes.high)
        placed.compute = where
        placed.outputs.made = Output(type="uri_folder", path=place, name="of-a-node", version="3")
        twice = double(given=first.outputs.doubled)
        return {"kept": first.outputs.doubled, "twice": twice.outputs.made, "told": told.outputs.made}

    job = ended(client, outer(word="ab", where=SHORT, sizes=Sizes(wide=3)))
    assert job.status == "Completed"
    return job


def test_a_pipeline_is_a_node_of_another_and_its_output_is_promoted_and_read_too(client, nested, tmp_path):
    made = [texts_of(client, nested, output, tmp_path) for output in ("kept", "twice")]
    assert made == [["ab3" * 2], ["ab3" * 4]]


def test_a_value_that_a_node_writes_is_another_nodes_input(client, nested, tmp_path):
    assert texts_of(client, nested, "told", tmp_path) == ["abc8"]


def test_outputs_lie_in_the_datastore_that_a_pipeline_names(client, nested):
    nodes = {node.display_name: node for node in client.jobs.list(parent_job_name=nested.name)}
    told = client.jobs.get(nodes["told"].name).outputs["made"].path
    places = [nested.outputs["kept"].path, nested.outputs["told"].path, told]
    assert ["datastores/workspaceartifactstore/" in place for place in places] == [True] * 3


def test_an_output_of_a_node_lies_where_it_was_asked_for_and_under_the_name(client, nested, emulator):
    """What it holds came by a group of inputs, to a node whose compute an input names."""
    nodes = {node.display_name: node for node in client.jobs.list(parent_job_name=nested.name)}
    below = f"of-nodes/{nodes['placed'].name}/made"
    file = emulator.folder / f"blobs/azureml-blobstore/{below}/a.txt"
    found = client.data.get("of-a-node", "3")
    assert (file.read_text(), found.type) == ("34", "uri_folder")
    assert found.path.rstrip("/").endswith(f"paths/{below}")


@pytest.fixture(scope="module")
def said(client, tmp_path_factory) -> list[str]:
    """The lines of a job that tells of its temporary folder, of a module and of an input."""
    from azure.ai.ml import Input

    code = tmp_path_factory.mktemp("code")
    (code / "library").mkdir()
    (code / "library/shapes_of_mine.py").write_text("print('found it')")
    told = "import os, tempfile; print(oct(os.stat(tempfile.gettempdir()).st_mode), tempfile.gettempdir())"
    text = f"python -c '{told}; import multiprocessing; multiprocessing.Manager()'"
    text += " && python -c 'import shapes_of_mine' && echo ${{inputs.table}}"
    address = "azureml://datastores/workspaceblobstore/paths/nowhere/x.csv"
    given = {"table": Input(type="uri_file", path=address, mode="direct")}
    job = make_command(text, code=code, inputs=given, environment_variables={"PYTHONPATH": "library"})
    return log_of(client, ended(client, job), tmp_path_factory.mktemp("log")).splitlines()[-3:]


def test_the_temporary_folder_of_a_command_is_its_own_and_has_room_for_a_sockets_name(said, emulator):
    mode, place = said[0].split(maxsplit=1)
    parent = Path(place).parent.resolve()  # it has a short name where the folder's is long
    assert (mode, parent, Path(place).exists()) == ("0o40700", (emulator.folder / "tmp").resolve(), False)


def test_a_module_is_found_where_the_jobs_own_pythonpath_says(said):
    assert said[1] == "found it"


def test_a_direct_input_is_its_address(said):
    assert said[2].endswith("datastores/workspaceblobstore/paths/nowhere/x.csv")


ODD = ["a%20b.txt", "a b.txt", "$(touch ran).txt", "x; touch ran", "`touch ran`", "it's \"&& touch ran #"]


def test_the_name_of_an_input_is_one_word_of_the_command_whatever_it_holds(client, tmp_path):
    from azure.ai.ml import Input

    given = {}
    for number, name in enumerate(ODD):
        (tmp_path / name).write_text(f"{number} ")
        given[f"i{number}"] = Input(type="uri_file", path=str(tmp_path / name))
    text = "; ".join(f"cat ${{{{inputs.{i}}}}} \"${{{{inputs.{i}}}}}\" '${{{{inputs.{i}}}}}'" for i in given)
    job = ended(client, make_command(f"{text}; ls", inputs=given))
    read = "".join(f"{number} " * 3 for number in range(len(ODD)))
    assert log_of(client, job, tmp_path / "logs").endswith(read)


def test_quotes_in_a_comment_or_in_an_inner_command_are_told_from_those_of_the_command(client, tmp_path):
    from azure.ai.ml import Input

    (tmp_path / "a $ b").write_text("read ")
    given = {"rows": Input(type="uri_file", path=str(tmp_path / "a $ b"))}
    text = """
    # it's a comment
    echo "\\"$( (cat "${{inputs.rows}}"; echo ')') )" 'a\\' ${{inputs.rows}} # and "another
    cat ${{inputs.rows}}
    """
    said = log_of(client, ended(client, make_command(text, inputs=given)), tmp_path / "logs")
    assert said.splitlines()[-2].startswith('"read )') and said.endswith("a $ b\nread ")


@pytest.mark.parametrize(
    ("goes_on", "ran"),
    [(None, {"breaks": "Failed", "stands_alone": "Failed"}), (False, {"breaks": "Failed"})],
)
def test_when_a_node_fails_those_that_do_not_read_from_it_run_unless_the_pipeline_stops(client, goes_on, ran):
    from azure.ai.ml import Input, dsl

    fail = make_command("exit 3", outputs={"made": folder()})
    read = make_command("true", inputs={"given": Input(type="uri_folder")}, outputs={"made": folder()})

    @dsl.pipeline(compute=SHORT)
    def three():
        breaks = fail()
        reads = read(given=breaks.outputs.made)
        read(given=reads.outputs.made)
        stands_alone = make_command("exit 4")()  # noqa: F841

    job = three()
    job.settings.continue_on_step_failure = goes_on
    job.name = f"of-three-{goes_on}".lower()
    words = reason(client, job)
    nodes = {node.display_name: node.status for node in client.jobs.list(parent_job_name=job.name)}
    assert (nodes, client.jobs.get(job.name).status) == (ran, "Failed")
    told = "Failed nodes: /breaks, /stands_alone." in words, "status 3" in words, "status 4" in words
    assert goes_on is False or told == (True, True, True)


def test_a_node_runs_the_newest_version_of_a_component_that_it_names_without_one(client, tmp_path):
    from azure.ai.ml import dsl
    from azure.ai.ml.entities import CommandComponent, Environment

    given = {"environment": Environment(image="python:3.11"), "outputs": {"made": {"type": "uri_folder"}}}
    for version in ("1", "2"):
        text = f"echo -n {version} > ${{{{outputs.made}}}}/a.txt"
        made = CommandComponent(name="renewed", version=version, command=text, **given)
        client.components.create_or_update(made)
    newest = client.components.get("renewed", label="default")

    @dsl.pipeline(compute=SHORT)
    def one():
        return {"last": newest().outputs.made}

    job = ended(client, one())
    client.jobs.download(job.name, download_path=tmp_path, output_name="last")
    (made,) = tmp_path.rglob("a.txt")
    assert (job.status, made.read_text()) == ("Completed", "2")


def test_a_component_within_itself_is_refused(http, arm):
    identifiers = [f"{arm.workspace}/components/{name}/versions/1" for name in ("hen", "egg")]
    nodes = [{"of": {"type": "pipeline", "componentId": identifier}} for identifier in identifiers]
    for identifier, name, jobs in zip(identifiers, ("hen", "egg"), reversed(nodes), strict=True):
        spec = {"name": name, "version": "1", "type": "pipeline", "jobs": jobs}
        http.put(identifier, json={"properties": {"componentSpec": spec}}).raise_for_status()
    job = {"properties": {"jobType": "Pipeline", "jobs": nodes[0]}}
    told = http.put(f"{arm.workspace}/jobs/hen-and-egg", json=job)
    assert (told.status_code, "hen" in told.text and "itself" in told.text) == (400, True)


KINDS = ["uri_folder", "mltable", "mlflow_model", "custom_model"]


@pytest.fixture(scope="module")
def made(client):
    """A completed job whose outputs have names, all but the last versions too."""
    from azure.ai.ml import Output

    outputs = {kind: Output(type=kind, name=f"made-as-{kind}", version="7") for kind in KINDS}
    text = "; ".join(f"echo ab > ${{{{outputs.{kind}}}}}/a.txt" for kind in KINDS)
    job = ended(client, make_command(text, outputs=outputs | {"counted": folder(name="counted")}))
    assert job.status == "Completed"
    return job


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_with_a_name_is_an_asset_when_the_job_has_completed(client, made, kind):
    assets = client.models if "model" in kind else client.data
    found = assets.get(f"made-as-{kind}", "7")
    assert (found.type, f"{made.name}/{kind}" in found.path) == (kind, True)


def test_an_output_with_a_name_and_no_version_gets_the_next_one(client, made):
    job = ended(client, make_command("true", outputs={"made": folder(name="counted")}))
    assert (made.outputs.counted.version, job.outputs.made.version) == ("1", "2")
    assert client.data.get("counted", label="latest").version == "2"


def test_an_output_with_a_version_that_is_there_is_refused_before_the_job_runs(client, made):
    from azure.core.exceptions import HttpResponseError

    job = make_command("true", outputs={"made": folder(name="made-as-uri_folder", version="7")})
    with pytest.raises(HttpResponseError, match="version '7' of 'made-as-uri_folder' is there already"):
        client.jobs.create_or_update(job)


def test_what_lies_in_outputs_and_logs_and_every_named_output_is_downloaded(client, emulator, tmp_path):
    from azure.ai.ml import Output

    place = "azureml://datastores/workspaceblobstore/paths/all-of-it/"
    named = {"data": folder(path=place), "model": Output(type="mlflow_model")}
    text = "mkdir -p logs outputs/deep; echo 1 > outputs/deep/a.txt; echo 2 > logs/b.txt; "
    text += "echo 3 > ${{outputs.data}}/c.txt; echo 4 > ${{outputs.model}}/d.txt"
    job = ended(client, make_command(text, outputs=named))
    client.jobs.download(job.name, download_path=tmp_path, all=True)
    found = {str(file.relative_to(tmp_path)): file.read_text().strip() for file in tmp_path.rglob("?.txt")}
    assert found == {
        "artifacts/outputs/deep/a.txt": "1",
        "artifacts/logs/b.txt": "2",
        "named-outputs/data/c.txt": "3",
        "named-outputs/model/d.txt": "4",
    }
    assert (emulator.folder / "blobs/azureml-blobstore/all-of-it/c.txt").read_text() == "3\n"


def test_what_a_failed_command_left_in_outputs_is_kept_but_no_asset_is_made_of_it(client, tmp_path):
    from azure.core.exceptions import ResourceNotFoundError

    outputs = {"made": folder(name="unfinished")}
    job = ended(client, make_command("mkdir -p outputs; echo 1 > outputs/a.txt; exit 3", outputs=outputs))
    client.jobs.download(job.name, download_path=tmp_path)
    assert (job.status, (tmp_path / "artifacts/outputs/a.txt").read_text()) == ("Failed", "1\n")
    with pytest.raises(ResourceNotFoundError, match="unfinished"):
        client.data.get("unfinished", "1")


PYTORCH = {"type": "pytorch", "process_count_per_instance": 2}
RANKS = 'echo "$RANK of $WORLD_SIZE, $LOCAL_RANK on node $NODE_RANK, $MASTER_ADDR ${MASTER_PORT:+named}"'


@pytest.fixture(scope="module")
def two_nodes(client) -> str:
    from azure.ai.ml.entities import AmlCompute

    wanted = AmlCompute(name="two-nodes", size="Standard_DS3_v2", max_instances=2)
    return client.compute.begin_create_or_update(wanted).result().name


def test_the_pytorch_processes_of_a_node_know_their_rank_and_number_and_its_variables(
    client, two_nodes, tmp_path
):
    from azure.ai.ml import dsl

    variables = {"COLOUR": "b l u e"}
    asked = {"distribution": PYTORCH, "instance_count": 2, "compute": two_nodes}
    write = make_command(f"{RANKS}; echo $COLOUR", environment_variables=variables, **asked)

    @dsl.pipeline
    def one():
        write()

    job = ended(client, one())
    (node,) = client.jobs.list(parent_job_name=job.name)
    lines = log_of(client, node, tmp_path).splitlines()
    assert lines.count("b l u e") == 4
    assert sorted(line for line in lines if " of " in line) == [
        f"{rank} of 4, {rank % 2} on node {rank // 2}, 127.0.0.1 named" for rank in range(4)
    ]


@pytest.mark.parametrize("word", ["compute", "default_compute"])
def test_a_node_that_names_no_compute_runs_on_the_pipelines(client, two_nodes, word):
    from azure.ai.ml import dsl

    work = make_command("true", compute=None, instance_count=3)

    @dsl.pipeline(**{word: two_nodes})
    def one():
        work()

    assert "cluster 'two-nodes' has at most 2" in reason(client, one())


def test_one_process_that_fails_ends_the_others(client):
    text = 'if [ "$RANK" = 1 ]; then exit 5; fi; sleep 600'
    assert "as process 1 of 2 ended with exit status 5" in reason(
        client, make_command(text, distribution=PYTORCH)
    )


@pytest.mark.parametrize("kind", ["mpi", "tensorflow", "ray"])
def test_other_distributions_are_refused_by_name(client, kind):
    from azure.ai.ml import MpiDistribution, RayDistribution, TensorFlowDistribution
    from azure.core.exceptions import HttpResponseError

    asked = {"mpi": MpiDistribution(), "tensorflow": TensorFlowDistribution(), "ray": RayDistribution()}
    with pytest.raises(HttpResponseError, match=rf"(?i)distribution {kind} is not part of the emulator"):
        client.jobs.create_or_update(make_command("true", distribution=asked[kind]))


def test_an_interactive_service_of_a_node_is_refused_by_name(client):
    from azure.ai.ml import dsl
    from azure.ai.ml.entities import JupyterLabJobService
    from azure.core.exceptions import HttpResponseError

    work = make_command("true", services={"My lab": JupyterLabJobService()})

    @dsl.pipeline(compute=SHORT)
    def one():
        work()

    with pytest.raises(HttpResponseError, match="service My lab is not part of the emulator"):
        client.jobs.create_or_update(one())


def test_a_command_is_ended_at_its_timeout(client):
    begun = time.monotonic()
    words = reason(client, make_command("sleep 600", timeout=1))
    assert "longer than its timeout of 1 s" in words and time.monotonic() - begun < 60


def test_an_environment_that_is_nowhere_is_refused(client):
    from azure.core.exceptions import HttpResponseError

    with pytest.raises(HttpResponseError, match="no environment named 'ghost'"):
        client.jobs.create_or_update(make_command("true", environment="azureml:ghost:3"))


def test_an_environment_of_a_node_that_is_nowhere_is_refused(client):
    from azure.ai.ml import dsl
    from azure.core.exceptions import HttpResponseError

    write = make_command("true", environment="ghost:3")

    @dsl.pipeline(compute=SHORT)
    def one():
        write()

    with pytest.raises(HttpResponseError, match="no environment named 'ghost'"):
        client.jobs.create_or_update(one())


@pytest.mark.parametrize("form", ["job", "pipeline", "node", "asset"])
def test_an_input_on_the_web_is_refused_before_the_job_runs(client, form):
    from azure.ai.ml import Input, dsl
    from azure.ai.ml.entities import Data
    from azure.core.exceptions import HttpResponseError

    address = "wasbs://datasets@azuremlexamples.blob.core.windows.net/iris.csv"
    if form == "asset":
        asset = Data(name="iris-on-the-web", version="1", path=address, type="uri_file")
        given = Input(type="uri_file", path=client.data.create_or_update(asset).id)
    else:
        given = Input(type="uri_file", path=address)
    read = make_command("cat ${{inputs.given}}", inputs={"given": Input(type="uri_file")})

    @dsl.pipeline
    def of_pipeline(given):
        read(given=given)

    @dsl.pipeline
    def of_node():
        read(given=given)

    jobs = {"pipeline": lambda: of_pipeline(given), "node": of_node}
    job = jobs.get(form, lambda: make_command("cat ${{inputs.given}}", inputs={"given": given}))()
    with pytest.raises(HttpResponseError, match="is not part of the emulator; name a local file"):
        client.jobs.create_or_update(job)


def test_a_job_trusts_whom_the_caller_trusts(emulator_with, monkeypatch, tmp_path):
    """As behind a proxy that opens https, and whose authority pip has to be told."""
    import trustme

    trusted = []
    for variable in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "PIP_CERT"):
        trusted.append(trustme.CA().cert_pem.bytes().decode().strip())
        (tmp_path / variable).write_text(trusted[-1])
        monkeypatch.setenv(variable, str(tmp_path / variable))
    emulator_with()
    job = ended(client_of(), make_command("cat $REQUESTS_CA_BUNDLE"))
    log = log_of(client_of(), job, tmp_path / "log")
    assert [own in log for own in trusted] == [True] * 3
