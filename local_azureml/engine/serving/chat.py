"""The process behind a deployment: loads an MLflow model folder and answers conversations over HTTP."""

import asyncio
import json
import time
import traceback
import uuid
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from local_azureml.engine.processes import UserError
from local_azureml.engine.serving import script_server
from local_azureml.engine.serving.generation import (
    Answer,
    GenerationRequest,
    Generator,
    Parameters,
    TooLongError,
)
from local_azureml.engine.serving.script_server import QUEUED, BadRequestError

EXPECTED = (
    '{"input_data": {"input_string": [{"role": "user", "content": "…"}], "parameters": {"temperature": 0.7,'
    ' "top_p": 0.9, "do_sample": true, "max_new_tokens": 200}}}'
)
# parameter -> (types, what is legal, in words). Those that the cards of Azure's chat models name: Supported
# Parameters in assets/models/system/Llama-2-7b-chat/description.md of github.com/Azure/azureml-assets
LEGAL = {
    "do_sample": ((bool,), lambda value: True, "true or false"),
    "temperature": ((int, float), lambda value: 0 <= value <= 10, "a number from 0 to 10"),
    "top_p": ((int, float), lambda value: 0 < value <= 1, "a number above 0, at most 1"),
    "top_k": ((int, type(None)), lambda value: value is None or value >= 1, "a positive integer or null"),
    "max_new_tokens": ((int,), lambda value: value >= 1, "a positive integer"),
    "ignore_eos": ((bool,), lambda value: True, "true or false"),
    "return_full_text": ((bool,), lambda value: True, "true or false"),
    # what LangChain's client of Azure's endpoints sends: langchain_community.llms.azureml_endpoint
    "stop": ((str, list), lambda value: _texts(value), "a text of 1 to 100 characters, or at most 16 such"),
    # of vLLM, which serves chat models on Azure: docs.vllm.ai, SamplingParams
    "seed": ((int,), lambda value: 0 <= value < 2**63, "an integer from 0"),
}


def _texts(given: str | list) -> bool:
    texts = [given] if isinstance(given, str) else given
    return len(texts) <= 16 and all(isinstance(text, str) and 0 < len(text) <= 100 for text in texts)


def flat_or_nested(given: list) -> list[list[dict]]:
    """Return the conversations of a list of messages or of a list of such lists."""
    return [check_conversation(messages) for messages in (given if isinstance(given[0], list) else [given])]


def one_conversation(given: list) -> list[list[dict]]:
    """Return the one conversation of a list of messages or of a list of such lists."""
    conversations = flat_or_nested(given)
    if len(conversations) > 1:
        raise BadRequestError("this server answers one conversation a request")
    return conversations


def flat(given: list) -> list[list[dict]]:
    """Return the one conversation of a list of messages."""
    if isinstance(given[0], list):
        raise BadRequestError("this server takes one conversation, a list of messages, not a list of lists")
    return [check_conversation(given)]


def vllm_answer(answers: list[Answer]) -> dict:
    """Return what the vLLM image answers."""
    return {"output": answers[0].text}


def mlflow_answer(answers: list[Answer]) -> list[dict]:
    """Return what the MLflow no-code server answers: a table of one column."""
    return [{"0": answer.text} for answer in answers]


def openai_answer(answers: list[Answer]) -> dict:
    """Return what the newest serving image answers."""
    answer = answers[0]
    return {
        "output": answer.text,
        "message": {"role": "assistant", "content": answer.text},
        "finish_reason": answer.finish_reason,
        "usage": {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        },
        "model": "model",
        "id": f"chatcmpl-{uuid.uuid4().hex}",
    }


SHAPES = {  # server -> (what it takes, what it answers)
    "vllm": (one_conversation, vllm_answer),
    "mlflow": (flat_or_nested, mlflow_answer),  # the model card asks in the flat form, the tutorial nests
    "openai": (flat, openai_answer),
}


def run(specification: dict) -> None:
    """Load the model and serve it until the process is killed."""
    faults = specification.get("faults", {})
    if "deployment-unhealthy" in faults:
        raise UserError("the fault deployment-unhealthy is switched on")
    torch.seed()  # a forked child would draw what its siblings draw
    begun = time.monotonic()
    most = specification.get("max_concurrent_requests", 1)
    generator = Generator(Path(specification["model"]), most)
    shape = faults.get("answer-shape", "mlflow")
    app = create_app(generator, shape, most, specification.get("request_timeout", 5.0), faults)
    print(f"loaded in {time.monotonic() - begun:.1f} s, {most} conversations at once", flush=True)
    # a socket in a folder of the owner's, which no other user of the machine reaches
    uvicorn.run(app, uds=specification["socket"], log_level="warning", access_log=False)


def create_app(generator: Generator, shape: str, most: int, timeout: float, faults: dict) -> FastAPI:
    """Return the scoring server, answering in the shape of one of Azure's three."""
    app = FastAPI(openapi_url=None)
    app.state.running = 0
    threads = ThreadPoolExecutor(max(1, QUEUED * most))

    @app.get("/")
    async def health() -> dict:
        return {"status": "healthy"}

    @app.post("/score")
    async def score(request: Request) -> Response:
        begun = time.monotonic()
        if app.state.running >= QUEUED * most:
            return _said(refusal(429, f"more than {QUEUED * most} requests at once; try again later"), begun)
        app.state.running += 1
        try:
            answer = await _score(await request.body(), generator, threads, shape, timeout, faults)
        finally:
            app.state.running -= 1
        return _said(answer, begun)

    return app


async def _score(
    body: bytes, generator: Generator, threads: Executor, shape: str, timeout: float, faults: dict
) -> Response:
    asked: list[GenerationRequest] = []
    until = time.monotonic() + timeout

    def prompts(conversations: list[list[dict]]) -> list[list[int]]:
        return [generator.prompts.make(talk, until - time.monotonic()) for talk in conversations]

    try:
        if faults.get("scoring-status") == 424:
            raise RuntimeError("the fault scoring-status is on")
        given, parameters = parse(body)
        conversations, answered = SHAPES[shape][0](given), SHAPES[shape][1]
        made = await asyncio.get_running_loop().run_in_executor(threads, prompts, conversations)
        asked += [generator.ask(prompt, parameters) for prompt in made]
        answers = asyncio.gather(*(asyncio.wrap_future(request.answer) for request in asked))
        return JSONResponse(answered(await asyncio.wait_for(answers, until - time.monotonic())))
    except (BadRequestError, TooLongError) as error:
        return refusal(400, f"{error}; expected is {EXPECTED}")
    except (TimeoutError, asyncio.TimeoutError):  # two, below Python 3.11
        return refusal(408, f"no answer within the deployment's request timeout of {timeout:g} s")
    except Exception as error:
        traceback.print_tb(error.__traceback__)  # without the message, which could quote a prompt
        return sent(*script_server.model_failed(error))
    finally:
        for request in asked:
            request.dropped = True


def refusal(status: int, message: str) -> Response:
    """Return an error as the scoring server writes it."""
    return sent(*script_server.refusal(status, message))


def sent(status: int, body: str, headers: dict) -> Response:
    return Response(body, status, headers, "text/plain")


def _said(answer: Response, begun: float) -> Response:
    print(f"{answer.status_code} in {time.monotonic() - begun:.2f} s, {len(answer.body)} bytes", flush=True)
    return answer


def parse(body: bytes) -> tuple[list, Parameters]:
    """Return input_string and the parameters of a request's body."""
    try:
        request = json.loads(body)
    except ValueError as error:
        raise BadRequestError(f"the body is not JSON ({error})") from None
    data = request.get("input_data") if isinstance(request, dict) else None
    if not isinstance(data, dict):
        raise BadRequestError("the body has no object input_data")
    given = _column(data) if "columns" in data else data.get("input_string")
    if not isinstance(given, list) or not given:
        raise BadRequestError("input_data has no list input_string with messages in it")
    return given, parameters_of({**_table(data, "parameters"), **_table(request, "params")})


def _column(table: dict) -> list:
    """Return a table's conversations (learn.microsoft.com: how-to-deploy-mlflow-models-online-endpoints)."""
    columns, rows = table["columns"], table.get("data")
    index = table.get("index", rows)
    lists = isinstance(rows, list) and isinstance(index, list) and len(index) == len(rows)
    if columns != ["input_string"] or not lists or not all(_is_conversation_row(row) for row in rows):
        raise BadRequestError(
            'a table has columns ["input_string"] and data of rows, each a list with one conversation'
        )
    return [row[0] for row in rows]


def _is_conversation_row(row) -> bool:
    return isinstance(row, list) and len(row) == 1 and isinstance(row[0], list)


def _table(parent: dict, name: str) -> dict:
    table = parent.get(name) or {}
    if not isinstance(table, dict):
        raise BadRequestError(f"{name} is not an object")
    return table


def parameters_of(given: dict) -> Parameters:
    """Return the parameters, each checked."""
    for name, value in given.items():
        if name not in LEGAL:
            raise BadRequestError(f"there is no parameter {name!r}; there is {', '.join(LEGAL)}")
        types, legal, words = LEGAL[name]
        if (
            not isinstance(value, types)
            or (isinstance(value, bool) and bool not in types)
            or not legal(value)
        ):
            raise BadRequestError(f"{name} has to be {words}")
    return Parameters(**given)


def check_conversation(messages: list) -> list[dict]:
    """Return the messages if user and assistant alternate, a system message only first, the user last."""
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("a conversation is a list of messages")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise BadRequestError('a message is an object with the strings "role" and "content"')
    roles = [message.get("role") for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if any(role != ("user", "assistant")[turn % 2] for turn, role in enumerate(turns)):
        raise BadRequestError("user and assistant have to alternate, after at most one system message")
    if len(turns) % 2 == 0:
        raise BadRequestError("the last message has to be the user's")
    return messages
