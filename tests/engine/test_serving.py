"""The process behind a deployment, over HTTP."""

import json
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from tiny_chats import ANIMALS, chats, write_jsonl
from tiny_run import Run, child

from local_azureml.engine import processes
from local_azureml.engine.chat_completion import STEPS

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """An MLflow folder of a model that has learned what animals say."""
    folder = tmp_path_factory.mktemp("served")
    assert child("tiny_phi3:make_checkpoint", {"folder": str(folder / "base")}, folder).wait() == 0
    train = write_jsonl(folder / "train.jsonl", chats(200))
    inputs = {
        "learning_rate": 0.01,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 8,
        "logging_steps": 100,
    }
    run = Run(folder / "run", mlflow_model_path=folder / "base", train_file_path=train, **inputs)
    for name in STEPS:
        assert run.step(name, evaluation_strategy="disable").wait() == 0, run.log(name)
    return run.mlflow


class Server:
    """A serving process on a socket of its own."""

    def __init__(self, model: Path, folder: Path, **settings):
        self.place = tempfile.TemporaryDirectory()  # a test's own may have too long a name
        socket = f"{self.place.name}/socket"
        self.log = folder / "log.txt"
        defaults = {"max_concurrent_requests": 8, "request_timeout": 60, "faults": {}}
        specification = {"model": str(model), "socket": socket, **defaults, **settings}
        self.process = processes.start(
            "local_azureml.engine.serving.chat:run", specification, folder, self.log, {}
        )
        self.client = httpx.Client(
            base_url="http://deployment", transport=httpx.HTTPTransport(uds=socket), timeout=60
        )
        while self.process.alive and not self._healthy():
            time.sleep(0.02)

    def _healthy(self) -> bool:
        try:
            return self.client.get("/").status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, question: str | list, **parameters) -> httpx.Response:
        """Ask one question, in a nested conversation of one message unless it is a conversation already."""
        given = [[user(question)]] if isinstance(question, str) else question
        return self.client.post(
            "/score", json={"input_data": {"input_string": given, "parameters": parameters}}
        )

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()
        self.place.cleanup()


def user(text: str) -> dict:
    return {"role": "user", "content": text}


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """A function that starts a server; all are stopped at the end."""
    servers = []

    def start(model: Path, **settings) -> Server:
        servers.append(Server(model, tmp_path_factory.mktemp("server"), **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def server(model, serve) -> Server:
    """A server in the shape that says most about an answer, which a fault chooses."""
    return serve(model, faults={"answer-shape": "openai"})


@pytest.fixture(scope="module")
def no_code(model, serve) -> Server:
    return serve(model)


@pytest.fixture(scope="module")
def busy(model, serve) -> Server:
    """A server that answers one at a time."""
    return serve(model, faults={"answer-shape": "vllm"}, max_concurrent_requests=1)


QUESTIONS = [f"What does the {animal} say?" for animal in ANIMALS]


def test_it_answers_what_the_model_has_learned(server):
    answers = [server.ask([user(question)]).json()["output"] for question in QUESTIONS]
    assert all(answer.startswith("The ") and answer.endswith(".") for answer in answers), answers


def test_the_answer_ends_with_the_turn_and_counts_its_tokens(server):
    answer = server.ask([user(QUESTIONS[0])]).json()
    used = answer["usage"]
    assert (answer["finish_reason"], answer["message"]) == (
        "stop",
        {"role": "assistant", "content": answer["output"]},
    )
    assert used["total_tokens"] == used["prompt_tokens"] + used["completion_tokens"]
    assert "<|" not in answer["output"]


def test_max_new_tokens_cuts_the_answer(server):
    answer = server.ask([user(QUESTIONS[0])], max_new_tokens=2).json()
    assert (answer["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 2)


def test_requests_of_different_parameters_share_a_batch_and_keep_their_own(server):
    talks = [[*chats(1, seed)[0]["messages"][:-1]] for seed in range(4)]
    alone = [server.ask(talk).json()["output"] for talk in talks]
    asked = [(talk, {"do_sample": False}) for talk in talks]
    asked += [(talks[0], {"max_new_tokens": 1}), (talks[0], {"do_sample": True, "temperature": 10.0})]
    with ThreadPoolExecutor(6) as clients:
        made = list(clients.map(lambda each: server.ask(each[0], **each[1]).json(), asked))
    assert [answer["output"] for answer in made[:4]] == alone
    assert made[4]["usage"]["completion_tokens"] == 1


def test_a_high_temperature_varies_the_answer(server):
    settings = {"do_sample": True, "temperature": 10.0, "max_new_tokens": 8}
    assert len({server.ask([user(QUESTIONS[0])], **settings).json()["output"] for _ in range(5)}) > 1


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"top_p": 0.001, "temperature": 10}])
def test_no_temperature_or_a_narrow_top_p_answers_as_without_sampling(server, settings):
    plain = server.ask([user(QUESTIONS[0])]).json()["output"]
    sampled = [server.ask([user(QUESTIONS[0])], do_sample=True, **settings).json() for _ in range(3)]
    assert [answer["output"] for answer in sampled] == [plain] * 3


def test_each_of_azures_three_servers_is_played(server, busy, no_code):
    question, flat = [[user(QUESTIONS[0])]], [user(QUESTIONS[0])]
    text = server.ask(flat).json()["output"]
    asked = [busy.ask(question), busy.ask(flat), no_code.ask(question), no_code.ask(flat)]
    shapes = [{"output": text}] * 2 + [[{"0": text}]] * 2
    assert [(answer.status_code, answer.json()) for answer in asked] == [(200, shape) for shape in shapes]
    assert server.ask(question).status_code == 400


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "the body is not JSON"),
        (b"[]", "the body has no object input_data"),
        (b'{"input_data": {"input_string": "Hello"}}', "no list input_string"),
        (b'{"input_data": {"input_string": [{"role": "user"}]}}', 'the strings "role" and "content"'),
        (b'{"input_data": {"columns": ["text"], "data": [[[]]]}}', 'a table has columns ["input_string"]'),
        (
            b'{"input_data": {"columns": ["input_string"], "data": ["a"]}}',
            "each a list with one conversation",
        ),
        (b'{"input_data": {"columns": ["input_string"], "index": [0, 1], "data": [[[]]]}}', "a table has"),
        (b'{"input_data": {"input_string": [{"role": "assistant", "content": "a"}]}}', "have to alternate"),
    ],
)
def test_a_request_of_another_form_is_answered_400_with_the_form_expected(server, body, words):
    answer = server.client.post("/score", content=body)
    message = answer.json()["error"]["message"]
    assert (answer.status_code, words in message, '"input_string": [{"role": "user"' in message) == (
        400,
        True,
        True,
    )


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"temperature": "hot"}, "temperature has to be a number from 0 to 10"),
        ({"top_p": 0}, "top_p has to be a number above 0, at most 1"),
        ({"do_sample": 1}, "do_sample has to be true or false"),
        ({"max_new_tokens": True}, "max_new_tokens has to be a positive integer"),
        ({"max_tokens": 5}, "there is no parameter 'max_tokens'"),
        ({"top_k": 0}, "top_k has to be a positive integer or null"),
        ({"stop": ["", "."]}, "stop has to be a text of 1 to 100 characters, or at most 16 such"),
        ({"stop": [1]}, "stop has to be a text of 1 to 100 characters, or at most 16 such"),
        ({"seed": -1}, "seed has to be an integer from 0"),
        ({"return_full_text": "yes"}, "return_full_text has to be true or false"),
    ],
)
def test_an_illegal_parameter_is_answered_400_with_what_is_legal(server, parameters, words):
    answer = server.ask([user("Hello")], **parameters)
    assert (answer.status_code, words in answer.json()["error"]["message"]) == (400, True)


def test_a_conversation_longer_than_the_context_is_answered_400(server):
    answer = server.ask([user("cow " * 300)])
    assert (answer.status_code, "the model takes fewer than 256" in answer.json()["error"]["message"]) == (
        400,
        True,
    )


def test_an_answer_that_takes_longer_than_the_request_timeout_is_408(model, serve):
    answer = serve(model, request_timeout=1e-6).ask(QUESTIONS[0])
    assert (answer.status_code, "request timeout of 1e-06 s" in answer.json()["error"]["message"]) == (
        408,
        True,
    )


def test_more_than_twice_the_concurrency_limit_is_429(busy):
    settings = {"do_sample": True, "temperature": 10, "max_new_tokens": 200}
    with ThreadPoolExecutor(12) as clients:
        statuses = list(clients.map(lambda _: busy.ask(QUESTIONS[0], **settings).status_code, range(12)))
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 2


def test_a_model_that_fails_is_424_with_azures_headers(serve, tmp_path):
    made = {"folder": str(tmp_path / "small"), "config": {"vocab_size": 20}}  # smaller than its tokenizer's
    assert child("tiny_phi3:make_checkpoint", made, tmp_path).wait() == 0
    broken = serve(tmp_path / "small")
    answer = broken.ask(QUESTIONS[0])
    headers = [answer.headers[f"ms-azureml-model-error-{name}"] for name in ("statuscode", "reason")]
    assert (answer.status_code, headers) == (424, ["500", "IndexError"])
    assert "Traceback" not in answer.text


def test_the_fault_scoring_status_lets_the_model_fail(model, serve):
    assert serve(model, faults={"scoring-status": 424}).ask(QUESTIONS[0]).status_code == 424


def test_the_log_never_holds_a_prompt_an_answer_or_a_key(no_code):
    logged = no_code
    logged.client.headers["Authorization"] = "Bearer secret-key"
    answer = logged.ask(QUESTIONS[0]).json()[0]["0"]
    logged.ask(QUESTIONS[0], temperature="secret-parameter")
    logged.ask([[user("secret-prompt"), user("secret-prompt")]])
    log = logged.log.read_text()
    assert ("200 in " in log, "400 in " in log) == (True, True)
    assert not [word for word in ("secret", answer, QUESTIONS[0], "<|") if word in log]


def test_a_model_folder_with_pickled_weights_does_not_start(model, serve, tmp_path):
    for path in model.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            copy = tmp_path / "pickled" / path.relative_to(model)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    (tmp_path / "pickled/model/pytorch_model.bin").write_bytes(b"\x80\x04.")
    process = serve(tmp_path / "pickled").process
    assert (process.wait(60), "never from pickles" in process.error()["message"]) == (1, True)


def test_an_unhealthy_deployment_ends_before_it_answers(model, serve):
    process = serve(model, faults={"deployment-unhealthy": ""}).process
    assert (process.wait(60), process.error()["code"]) == (1, "UserError")


def test_the_requests_body_may_carry_its_parameters_as_params(server):
    body = {"input_data": {"input_string": [user(QUESTIONS[0])]}, "params": {"max_new_tokens": 1}}
    answer = server.client.post("/score", content=json.dumps(body))
    assert answer.json()["usage"]["completion_tokens"] == 1


def test_a_conversation_may_come_in_a_table(model, serve):
    asked = [[user(question)] for question in QUESTIONS[:2]]
    table = {"columns": ["input_string"], "index": [0, 1], "data": [[talk] for talk in asked]}
    no_code = serve(model)
    body = {"input_data": table, "params": {"max_new_tokens": 3}}
    answer = no_code.client.post("/score", json=body).json()
    assert answer == no_code.ask(asked, max_new_tokens=3).json()
    assert len(answer) == 2


def test_an_answer_ends_before_a_text_that_stops_it(server):
    whole = server.ask([user(QUESTIONS[0])]).json()["output"]
    for stop in (whole[5:8], ["not in it", whole[5:8]]):
        answer = server.ask([user(QUESTIONS[0])], stop=stop).json()
        assert (answer["output"], answer["finish_reason"]) == (whole[:5].strip(), "stop")
    assert server.ask([user(QUESTIONS[0])], stop=["not in it"]).json()["output"] == whole


def test_the_same_seed_draws_the_same_answer_whoever_asks_beside_it(server):
    settings = {"do_sample": True, "temperature": 10.0, "max_new_tokens": 8}

    def ask(seed: int) -> str:
        return server.ask([user(QUESTIONS[0])], **settings, seed=seed).json()["output"]

    with ThreadPoolExecutor(8) as clients:
        together = list(clients.map(ask, [1, 2, 3, 4, 1, 2, 3, 4]))
    assert together[:4] == together[4:] == [ask(seed) for seed in (1, 2, 3, 4)]
    assert len(set(together)) == 4


def test_the_likeliest_token_alone_is_drawn_with_a_top_k_of_one(server):
    drawn = server.ask([user(QUESTIONS[0])], do_sample=True, temperature=10, top_k=1).json()["output"]
    assert drawn == server.ask([user(QUESTIONS[0])], top_k=None).json()["output"]


def test_an_answer_goes_on_after_its_end_where_that_is_ignored(server):
    answer = server.ask([user(QUESTIONS[0])], ignore_eos=True, max_new_tokens=40).json()
    assert (answer["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 40)


def test_the_full_text_has_the_question_before_the_answer(server):
    answer = server.ask([user(QUESTIONS[0])]).json()["output"]
    full = server.ask([user(QUESTIONS[0])], return_full_text=True).json()["output"]
    assert re.fullmatch(rf".*{re.escape(QUESTIONS[0])}.*{re.escape(answer)}", full, re.S)
