"""What a command job asks for is done, or refused by name."""

import time
from pathlib import Path

import pytest
from clients import SHORT, ended, log_of, make_command, reason
from conftest import client_of


def folder(**options):
    from azure.ai.ml import Output

    return Output(type="uri_folder", **options)


def test_an_output_that_the_pipeline_promotes_is_read_by_another_node_too(client, tmp_path):
    from azure.ai.ml import Input, dsl

    write = make_command("echo -n ab > ${{outputs.made}}/a.txt", outputs={"made": folder()})
    double = make_command(
        "cat ${{inputs.given}}/a.txt ${{inputs.given}}/a.txt > ${{outputs.made}}/b.txt",
        inputs={"given": Input(type="uri_folder")},
        outputs={"made": folder()},
    )

    @dsl.pipeline(compute=SHORT)
    def both():
        first = write()
        second = double(given=first.outputs.made)
        return {"kept": first.outputs.made, "doubled": second.outputs.made}

    job = ended(client, both())
    for output in ("kept", "doubled"):
        client.jobs.download(job.name, download_path=tmp_path, output_name=output)
    texts = {file.name: file.read_text() for file in tmp_path.rglob("*.txt")}
    assert (job.status, texts) == ("Completed", {"a.txt": "ab", "b.txt": "abab"})


def test_a_pipeline_is_a_node_of_another(client, tmp_path):
    from azure.ai.ml import Input, dsl

    write = make_command(
        "echo -n ${{inputs.word}}${{inputs.times}} > ${{outputs.made}}/a.txt",
        inputs={"word": Input(type="string"), "times": Input(type="integer", default=3)},
        outputs={"made": folder()},
    )
    double = make_command(
        "cat ${{inputs.given}}/a.txt ${{inputs.given}}/a.txt > ${{outputs.made}}/a.txt",
        inputs={"given": Input(type="uri_folder")},
        outputs={"made": folder()},
    )

    @dsl.pipeline
    def inner(word: str, ending: str = "d"):
        first = write(word=word)
        second = double(given=first.outputs.made)
        return {"doubled": second.outputs.made}

    @dsl.pipeline(compute=SHORT)
    def outer(word: str):
        first = inner(word=word)
        second = double(given=first.outputs.doubled)
        return {"last": second.outputs.made}

    job = ended(client, outer(word="ab"))
    client.jobs.download(job.name, download_path=tmp_path, output_name="last")
    (made,) = tmp_path.rglob("a.txt")
    assert (job.status, made.read_text()) == ("Completed", "ab3" * 4)


def test_the_temporary_folder_of_a_command_is_its_own_and_has_room_for_a_sockets_name(
    client, emulator, tmp_path
):
    told = "import os, tempfile; print(oct(os.stat(tempfile.gettempdir()).st_mode), tempfile.gettempdir())"
    program = f"python -c '{told}; import multiprocessing; multiprocessing.Manager()'"
    said = log_of(client, ended(client, make_command(program)), tmp_path).splitlines()[-1]
    mode, place = said.split(maxsplit=1)
    parent = Path(place).parent.resolve()  # it has a short name where the folder's is long
    assert (mode, parent, Path(place).exists()) == ("0o40700", (emulator.folder / "tmp").resolve(), False)


@pytest.mark.parametrize("name", ["a%20b.txt", "a b.txt"])
def test_the_name_of_an_input_is_taken_as_it_is(client, tmp_path, name):
    from azure.ai.ml import Input

    (tmp_path / name).write_text("read")
    given = {"rows": Input(type="uri_file", path=str(tmp_path / name))}
    job = ended(client, make_command("cat '${{inputs.rows}}'", inputs=given))
    assert log_of(client, job, tmp_path / "logs").endswith("read")


@pytest.mark.parametrize("name", ["$(touch ran).txt", "x; touch ran", "`touch ran`", "it's \"&& touch ran #"])
def test_the_name_of_an_input_is_one_word_of_the_command_whatever_it_holds(client, tmp_path, name):
    from azure.ai.ml import Input

    (tmp_path / name).write_text("read ")
    given = {"rows": Input(type="uri_file", path=str(tmp_path / name))}
    text = "cat ${{inputs.rows}} \"${{inputs.rows}}\" '${{inputs.rows}}'; ls"
    job = ended(client, make_command(text, inputs=given))
    assert log_of(client, job, tmp_path / "logs").endswith("read read read ")


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


def test_a_value_that_a_node_writes_is_another_nodes_input(client, tmp_path):
    from azure.ai.ml import dsl
    from azure.ai.ml.entities import CommandComponent, Environment

    values = {"number": {"type": "integer"}, "word": {"type": "string"}}

    def component(name: str, text: str, outputs: dict):
        plain = Environment(image="python:3.11")
        return CommandComponent(name=name, command=text, environment=plain, inputs=values, outputs=outputs)

    work = component(
        "work", "echo 8 > ${{outputs.number}}; echo ${{inputs.word}}c > ${{outputs.word}}", outputs=values
    )
    tell = component(
        "tell",
        "echo -n ${{inputs.word}}${{inputs.number}} > ${{outputs.made}}/a.txt",
        outputs={"made": {"type": "uri_folder"}},
    )

    @dsl.pipeline(compute=SHORT)
    def both():
        first = work(number=7, word="ab")
        second = tell(number=first.outputs.number, word=first.outputs.word)
        return {"last": second.outputs.made}

    job = ended(client, both())
    client.jobs.download(job.name, download_path=tmp_path, output_name="last")
    (made,) = tmp_path.rglob("a.txt")
    assert (job.status, made.read_text()) == ("Completed", "abc8")


@pytest.mark.parametrize(
    ("goes_on", "ran"),
    [(None, {"breaks": "Failed", "stands_alone": "Completed"}), (False, {"breaks": "Failed"})],
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
        stands_alone = make_command("true")()  # noqa: F841

    job = three()
    job.settings.continue_on_step_failure = goes_on
    job = ended(client, job)
    nodes = {node.display_name: node.status for node in client.jobs.list(parent_job_name=job.name)}
    assert (job.status, nodes) == ("Failed", ran)


def test_a_pipeline_tells_of_every_node_that_failed(client):
    from azure.ai.ml import dsl

    @dsl.pipeline(compute=SHORT)
    def two():
        one = make_command("exit 3")()  # noqa: F841
        other = make_command("exit 4")()  # noqa: F841

    words = reason(client, two())
    assert "Failed nodes: /one, /other." in words and "status 3" in words and "status 4" in words


def test_an_input_of_a_group_reaches_the_node(client, tmp_path):
    from azure.ai.ml import Input, dsl
    from azure.ai.ml.dsl._group_decorator import group  # mldesigner gives it in public

    @group
    class Sizes:
        wide: int
        high: int = 4

    write = make_command(
        "echo -n ${{inputs.wide}}x${{inputs.high}} > ${{outputs.made}}/a.txt",
        inputs={"wide": Input(type="integer"), "high": Input(type="integer")},
        outputs={"made": folder()},
    )

    @dsl.pipeline(compute=SHORT)
    def one(sizes: Sizes):
        return {"last": write(wide=sizes.wide, high=sizes.high).outputs.made}

    job = ended(client, one(sizes=Sizes(wide=3)))
    client.jobs.download(job.name, download_path=tmp_path, output_name="last")
    (made,) = tmp_path.rglob("a.txt")
    assert (job.status, made.read_text()) == ("Completed", "3x4")


def test_a_component_within_itself_is_refused(http, arm):
    identifiers = [f"{arm.workspace}/components/{name}/versions/1" for name in ("hen", "egg")]
    nodes = [{"of": {"type": "pipeline", "componentId": identifier}} for identifier in identifiers]
    for identifier, name, jobs in zip(identifiers, ("hen", "egg"), reversed(nodes), strict=True):
        spec = {"name": name, "version": "1", "type": "pipeline", "jobs": jobs}
        http.put(identifier, json={"properties": {"componentSpec": spec}}).raise_for_status()
    job = {"properties": {"jobType": "Pipeline", "jobs": nodes[0]}}
    told = http.put(f"{arm.workspace}/jobs/hen-and-egg", json=job)
    assert (told.status_code, "hen" in told.text and "itself" in told.text) == (400, True)


def test_a_node_runs_on_the_compute_that_an_input_names(client):
    from azure.ai.ml import dsl

    work = make_command("true")

    @dsl.pipeline()
    def placed(where: str):
        work().compute = where

    assert ended(client, placed(where=SHORT)).status == "Completed"


@pytest.mark.parametrize("kind", ["uri_folder", "mltable", "mlflow_model", "custom_model"])
def test_an_output_with_a_name_is_an_asset_when_the_job_has_completed(client, kind):
    from azure.ai.ml import Output

    name = f"made-as-{kind}"
    outputs = {"made": Output(type=kind, name=name, version="7")}
    job = ended(client, make_command("echo ab > ${{outputs.made}}/a.txt", outputs=outputs))
    assets = client.models if "model" in kind else client.data
    found = assets.get(name, "7")
    assert (job.status, found.type, f"{job.name}/made" in found.path) == ("Completed", kind, True)


def test_an_output_with_a_name_and_no_version_gets_the_next_one(client):
    for version in ("1", "2"):
        job = make_command("true", outputs={"made": folder(name="counted")})
        assert ended(client, job).outputs.made.version == version
    assert client.data.get("counted", label="latest").version == "2"


def test_an_output_with_a_version_that_is_there_is_refused_before_the_job_runs(client):
    from azure.core.exceptions import HttpResponseError

    job = make_command("true", outputs={"made": folder(name="taken", version="1")})
    ended(client, job)
    with pytest.raises(HttpResponseError, match="version '1' of 'taken' is there already"):
        client.jobs.create_or_update(job)


def test_no_asset_is_made_of_what_a_failed_job_left(client):
    from azure.core.exceptions import ResourceNotFoundError

    ended(client, make_command("exit 1", outputs={"made": folder(name="unfinished")}))
    with pytest.raises(ResourceNotFoundError, match="unfinished"):
        client.data.get("unfinished", "1")


def test_outputs_lie_in_the_datastore_that_a_pipeline_names(client):
    from azure.ai.ml import dsl

    write = make_command("echo 1 > ${{outputs.made}}/a.txt", outputs={"made": folder()})

    @dsl.pipeline(compute=SHORT, default_datastore="workspaceartifactstore")
    def one():
        write()
        return {"kept": write().outputs.made}

    job = ended(client, one())
    nodes = [client.jobs.get(node.name) for node in client.jobs.list(parent_job_name=job.name)]
    places = [job.outputs["kept"].path, *(node.outputs["made"].path for node in nodes)]
    inside = ["datastores/workspaceartifactstore/" in place for place in places]
    assert (job.status, inside) == ("Completed", [True] * 3)


def test_an_output_of_a_node_lies_where_it_was_asked_for_and_under_the_name(client, emulator):
    from azure.ai.ml import Output, dsl

    write = make_command("echo ab > ${{outputs.made}}", outputs={"made": Output(type="uri_file")})

    @dsl.pipeline(compute=SHORT)
    def placed():
        place = "azureml://datastores/workspaceblobstore/paths/of-nodes/${{name}}/${{output_name}}.txt"
        write().outputs.made = Output(type="uri_file", path=place, name="of-a-node", version="3")

    job = ended(client, placed())
    (node,) = client.jobs.list(parent_job_name=job.name)
    file = emulator.folder / f"blobs/azureml-blobstore/of-nodes/{node.name}/made.txt"
    found = client.data.get("of-a-node", "3")
    assert (file.read_text(), found.type) == ("ab\n", "uri_file")
    assert found.path.endswith(f"paths/of-nodes/{node.name}/made.txt")


def test_what_lies_in_outputs_and_logs_and_every_named_output_is_downloaded(client, tmp_path):
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


def test_what_a_failed_command_left_in_outputs_is_kept(client, tmp_path):
    job = ended(client, make_command("mkdir -p outputs; echo 1 > outputs/a.txt; exit 3"))
    client.jobs.download(job.name, download_path=tmp_path)
    assert (job.status, (tmp_path / "artifacts/outputs/a.txt").read_text()) == ("Failed", "1\n")


PYTORCH = {"type": "pytorch", "process_count_per_instance": 2}
RANKS = 'echo "$RANK of $WORLD_SIZE, $LOCAL_RANK on node $NODE_RANK, $MASTER_ADDR ${MASTER_PORT:+named}"'


@pytest.fixture(scope="module")
def two_nodes(client) -> str:
    from azure.ai.ml.entities import AmlCompute

    wanted = AmlCompute(name="two-nodes", size="Standard_DS3_v2", max_instances=2)
    return client.compute.begin_create_or_update(wanted).result().name


def test_pytorch_processes_know_their_rank_and_number(client, two_nodes, tmp_path):
    job = make_command(RANKS, distribution=PYTORCH, instance_count=2, compute=two_nodes)
    lines = log_of(client, ended(client, job), tmp_path).splitlines()
    assert sorted(line for line in lines if " of " in line) == [
        f"{rank} of 4, {rank % 2} on node {rank // 2}, 127.0.0.1 named" for rank in range(4)
    ]


def test_a_node_of_a_pipeline_has_its_processes_and_variables_too(client, tmp_path):
    from azure.ai.ml import dsl

    write = make_command(
        f"{RANKS}; echo $COLOUR", distribution=PYTORCH, environment_variables={"COLOUR": "b l u e"}
    )

    @dsl.pipeline(compute=SHORT)
    def one():
        write()

    job = ended(client, one())
    (node,) = client.jobs.list(parent_job_name=job.name)
    lines = log_of(client, node, tmp_path).splitlines()
    assert lines.count("b l u e") == 2 and "1 of 2, 1 on node 0, 127.0.0.1 named" in lines


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


@pytest.mark.parametrize("name", ["ghost:3", "azureml:ghost:3"])
def test_an_environment_that_is_nowhere_is_refused(client, name):
    from azure.core.exceptions import HttpResponseError

    with pytest.raises(HttpResponseError, match="no environment named 'ghost'"):
        client.jobs.create_or_update(make_command("true", environment=name))


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


def test_a_module_is_found_where_the_jobs_own_pythonpath_says(client, tmp_path):
    code = tmp_path / "code"
    (code / "library").mkdir(parents=True)
    (code / "library/shapes_of_mine.py").write_text("print('found it')")
    job = make_command(
        "python -c 'import shapes_of_mine'", code=code, environment_variables={"PYTHONPATH": "library"}
    )
    assert "found it" in log_of(client, ended(client, job), tmp_path)


def test_a_direct_input_is_its_address(client, tmp_path):
    from azure.ai.ml import Input

    address = "azureml://datastores/workspaceblobstore/paths/nowhere/x.csv"
    given = {"table": Input(type="uri_file", path=address, mode="direct")}
    job = make_command("echo ${{inputs.table}}", inputs=given)
    assert "datastores/workspaceblobstore/paths/nowhere/x.csv" in log_of(client, ended(client, job), tmp_path)


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "PIP_CERT"])
def test_a_job_trusts_whom_the_caller_trusts(emulator_with, monkeypatch, tmp_path, variable):
    """As behind a proxy that opens https, and whose authority pip has to be told."""
    import trustme

    own = trustme.CA().cert_pem.bytes().decode().strip()
    (tmp_path / "own.pem").write_text(own)
    monkeypatch.setenv(variable, str(tmp_path / "own.pem"))
    emulator_with()
    job = ended(client_of(), make_command("cat $REQUESTS_CA_BUNDLE"))
    assert own in log_of(client_of(), job, tmp_path / "log")
