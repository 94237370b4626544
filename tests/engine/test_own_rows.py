"""What download-dataset.py accepts, the job reads: generated files go through both."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from download_script import warm_script
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from local_azureml.identifiers import SMALL_MODEL

# The job's own preparation, for each line with a folder of rows; says how many of them are kept.
PREPARE = """
import contextlib, io, json, sys
from pathlib import Path
import pyarrow
from local_azureml.engine.chat_completion import preprocess
for line in sys.stdin:
    train, output, base = json.loads(line)
    inputs = {"task_name": "ChatCompletion", "train_file_path": train, "validation_file_path": train}
    upstream = {"chat_completion_model_import": base}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            preprocess.run({"faults": {}, "inputs": inputs, "upstream": upstream, "output": output})
        kept = len(pyarrow.ipc.open_stream(pyarrow.OSFile(f"{output}/train.arrow")).read_all())
    except Exception as error:
        kept = f"{type(error).__name__}: {error}"
    print(json.dumps(kept), flush=True)
"""

odd = st.sampled_from(
    [
        "2024-01-02 03:04:05",
        "2024-01-02",
        "12:30",
        "1e999",
        "null",
        "a\u2028b\x85",
        "\x00",
        '"',
        "<|end|>",
        "\ud83d",
        "",
    ]
)
texts = odd | st.text(max_size=8)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, float("inf"), float("nan")])
    | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)
contents = (
    texts | st.lists(st.builds(lambda text: {"type": "text", "text": text}, texts), max_size=2) | values
)
roles = st.sampled_from(["user", "assistant", "user", "assistant", "system", "human", "gpt", "tool"])
spoken = st.fixed_dictionaries(
    {"role": roles, "content": contents},
    optional={"name": values, "weight": st.sampled_from([0, 1]), "meta": values},
)
shared = st.fixed_dictionaries({"from": roles, "value": contents}, optional={"meta": values})
GOOD = [[{"role": "user", "content": "2024-01-02"}, {"role": "assistant", "content": "2024-01-02 03:04:05"}]]
shapes = st.one_of(
    st.fixed_dictionaries({"messages": st.lists(spoken, max_size=4) | st.sampled_from(GOOD) | values}),
    st.fixed_dictionaries({"conversations": st.lists(shared, max_size=4)}),
    st.fixed_dictionaries(
        {"instruction": texts, "output": texts}, optional={"input": texts, "system": values}
    ),
    st.fixed_dictionaries({"prompt": contents, "completion": contents}),
    st.dictionaries(st.sampled_from(["text", "question", "answer"]), values, max_size=3),
)
rows = st.builds(
    lambda row, more: row | more, shapes, st.dictionaries(st.sampled_from(["id", "x"]), values, max_size=2)
)
lines = st.builds(
    lambda row, raw, twice: json.dumps(row, ensure_ascii=not raw).replace(
        '"role"', '"role": 1, "role"', twice
    ),
    rows,
    st.booleans(),
    st.sampled_from([0, 0, 0, 1]),
)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    with warm_script(os.environ | {"HF_HOME": str(tmp_path_factory.mktemp("cache"))}) as run:
        yield run


@pytest.fixture(scope="module")
def kept_by_the_job(tmp_path_factory):
    """A function that says how many rows of a file the job's preparation keeps, or why it fails."""
    command, pipe = [sys.executable, "-c", PREPARE], subprocess.PIPE
    environment = os.environ | {"TMPDIR": str(tmp_path_factory.mktemp("temporary"))}  # torch leaves a folder
    options = {"cwd": Path(__file__).parents[2], "env": environment, "text": True}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, **options) as process:

        def prepare(train: Path) -> int | str:
            print(
                json.dumps([str(train), str(train.parent / "job"), str(SMALL_MODEL)]),
                file=process.stdin,
                flush=True,
            )
            return json.loads(process.stdout.readline())

        yield prepare


@settings(max_examples=75, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(drawn=st.lists(lines, min_size=1, max_size=6))
def test_the_job_keeps_every_row_that_the_script_writes(drawn, script, kept_by_the_job):
    with tempfile.TemporaryDirectory() as place:
        text = "\n".join(drawn * 15)
        Path(place, "mine.jsonl").write_bytes(text.encode("utf-8", "surrogatepass"))
        ended = script(Path(place), "--dataset", "mine.jsonl", "--drop_bad_rows", "--download_dir", "out")
        if ended.status:
            assert (ended.status, ended.err.count("\n")) == (1, 1), ended
        else:
            manifest = json.loads(Path(place, "out", "manifest.json").read_text("utf-8"))
            rows = manifest["splits"]["train"]["rows"]
            assert kept_by_the_job(Path(place, "out", manifest["train"])) == rows
