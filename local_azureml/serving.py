"""The process behind a deployment: loads an MLflow model folder and answers conversations over HTTP."""

import asyncio
import json
import queue
import threading
import time
import traceback
import uuid
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from .pipeline.checkpoint import find, weight_files
from .processes import UserError

EXPECTED = (
    '{"input_data": {"input_string": [{"role": "user", "content": "…"}], "parameters": {"temperature": 0.7,'
    ' "top_p": 0.9, "do_sample": true, "max_new_tokens": 200}}}'
)
QUEUED = 2  # times the concurrency limit: what Azure holds in flight before it answers 429
GATHER_SECONDS = 0.004  # how long a batch waits for the clients that the last batch has just answered


class BadRequestError(Exception):
    """What a request got wrong."""


@dataclass(frozen=True)
class Parameters:
    """How one answer is to be generated."""

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256

    @property
    def samples(self) -> bool:
        return self.do_sample and self.temperature > 0


LEGAL = {  # parameter -> (types, what is legal, in words)
    "do_sample": ((bool,), lambda value: True, "true or false"),
    "temperature": ((int, float), lambda value: 0 <= value <= 10, "a number from 0 to 10"),
    "top_p": ((int, float), lambda value: 0 < value <= 1, "a number above 0, at most 1"),
    "max_new_tokens": ((int,), lambda value: value >= 1, "a positive integer"),
}


@dataclass
class Answer:
    """A generated text and what it took."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass
class Ticket:
    """One conversation waiting for its answer."""

    prompt: list[int]
    parameters: Parameters
    answer: Future = field(default_factory=Future)
    dropped: bool = False  # nobody waits any more


class Generator:
    """Answers whatever waits in one batch, as many conversations as may run at once."""

    def __init__(self, folder: Path, most: int):
        checkpoint = find(folder)
        weight_files(checkpoint)  # safetensors or nothing: a pickle can run code
        tokens = next(iter(folder.rglob("tokenizer_config.json")), None)
        if tokens is None:
            raise UserError(f"the model folder {folder.name} has no tokenizer_config.json")
        self.tokenizer = AutoTokenizer.from_pretrained(
            tokens.parent, trust_remote_code=False, padding_side="left"
        )
        self.model = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype="auto", use_safetensors=True, trust_remote_code=False
        )
        self.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.context = self.model.config.max_position_embeddings
        self.ends = end_tokens(self.model.generation_config, self.tokenizer)
        self.most = most
        self.waiting: queue.SimpleQueue[Ticket] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="generator", daemon=True).start()

    def ask(self, messages: list[dict], parameters: Parameters) -> Ticket:
        """Queue a conversation; its answer comes in the ticket's future."""
        encoded = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        prompt = encoded["input_ids"]
        if len(prompt) >= self.context:
            raise BadRequestError(
                f"the conversation has {len(prompt)} tokens; the model takes fewer than {self.context}"
            )
        ticket = Ticket(prompt, parameters)
        self.waiting.put(ticket)
        return ticket

    def _work(self) -> None:
        crowded = False
        while True:
            batch = self._gather(crowded)
            crowded = len(batch) > 1 or not self.waiting.empty()
            self._answer(batch)

    def _gather(self, crowded: bool) -> list[Ticket]:
        """Return the tickets that wait; of several clients, give those just answered a moment to return."""
        batch = [self.waiting.get()]
        until = time.monotonic() + (GATHER_SECONDS if crowded else 0)
        while len(batch) < self.most:
            try:
                batch.append(self.waiting.get(timeout=max(0, until - time.monotonic())))
            except queue.Empty:
                break
        return batch

    def _answer(self, batch: list[Ticket]) -> None:
        batch = [ticket for ticket in batch if not ticket.dropped]
        try:
            if batch:
                self._generate(batch)
        except Exception as error:
            if len(batch) > 1:  # one conversation must not fail the others
                for ticket in batch:
                    self._answer([ticket])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)

    @torch.inference_mode()
    def _generate(self, batch: list[Ticket]) -> None:
        padded = self.tokenizer.pad({"input_ids": [ticket.prompt for ticket in batch]}, return_tensors="pt")
        samples = any(ticket.parameters.samples for ticket in batch)
        watch = Watch(batch, padded["input_ids"].shape[1], self)
        config = GenerationConfig(
            do_sample=samples,
            max_length=self.context,
            eos_token_id=self.ends,
            pad_token_id=self.tokenizer.pad_token_id,
            **({"top_k": 0} if samples else {}),
        )
        self.model.generate(
            **padded.to(self.model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([Choices(batch, self.model.device)] if samples else []),
            stopping_criteria=StoppingCriteriaList([watch]),
        )
        watch.finish()


def end_tokens(config: GenerationConfig, tokenizer) -> list[int]:
    """Return the tokens at which an answer ends: the model's own and the end of a turn."""
    known = config.eos_token_id
    ends = set(known if isinstance(known, list) else [known]) | {tokenizer.eos_token_id}
    return sorted((ends | {tokenizer.get_vocab().get("<|end|>")}) - {None})


class Choices(LogitsProcessor):
    """Applies each row's own temperature and top_p; a row that does not sample keeps its best token only."""

    def __init__(self, batch: list[Ticket], device: torch.device):
        rows = [ticket.parameters for ticket in batch]
        self.greedy = torch.tensor([not row.samples for row in rows], device=device)[:, None]
        self.temperature = torch.tensor([row.temperature or 1.0 for row in rows], device=device)[:, None]
        self.top_p = torch.tensor([row.top_p for row in rows], device=device)[:, None]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores = scores.float() / self.temperature
        ordered, places = scores.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1).roll(1, -1)
        before[:, 0] = 0  # the best token always stays
        cut = (before >= self.top_p) | (self.greedy & (before > 0))
        return scores.masked_fill(cut.scatter(1, places, cut), -torch.inf)


class Watch(StoppingCriteria):
    """Ends each row at its own limit and hands its answer over at once, while the others go on."""

    def __init__(self, batch: list[Ticket], start: int, generator: Generator):
        self.batch, self.start, self.generator = batch, start, generator
        self.open = dict(enumerate(batch))
        room = generator.context
        self.limits = [min(t.parameters.max_new_tokens, room - len(t.prompt)) for t in batch]
        self.ids: torch.Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        self.ids = input_ids
        made = input_ids.shape[1] - self.start
        for row, last in enumerate(input_ids[:, -1].tolist()):
            if row in self.open and (
                last in self.generator.ends or made >= self.limits[row] or self.batch[row].dropped
            ):
                self._deliver(row)
        return torch.tensor([row not in self.open for row in range(len(self.batch))], device=input_ids.device)

    def finish(self) -> None:
        """Deliver the rows that the end of the context cut off."""
        for row in list(self.open):
            self._deliver(row)

    def _deliver(self, row: int) -> None:
        ticket = self.open.pop(row)
        made = self.ids[row, self.start :].tolist()
        ended = bool(made) and made[-1] in self.generator.ends
        text = self.generator.tokenizer.decode(made[:-1] if ended else made, skip_special_tokens=True).strip()
        reason = "stop" if ended else "length"
        ticket.answer.set_result(Answer(text, reason, len(ticket.prompt), len(made)))


def flat_or_nested(given: list) -> list[list[dict]]:
    """Return the one conversation of a list of messages or of a list of such lists."""
    conversations = given if isinstance(given[0], list) else [given]
    if len(conversations) > 1:
        raise BadRequestError("this server answers one conversation a request")
    return [check_conversation(conversations[0])]


def nested(given: list) -> list[list[dict]]:
    """Return the conversations of a list of lists of messages."""
    if not isinstance(given[0], list):
        raise BadRequestError("this server takes a list of conversations, each a list of messages")
    return [check_conversation(messages) for messages in given]


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
    "vllm": (flat_or_nested, vllm_answer),
    "mlflow": (nested, mlflow_answer),
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
    shape = faults.get("answer-shape") or specification.get("shape", "mlflow")
    app = create_app(generator, shape, most, specification.get("request_timeout", 5.0), faults)
    print(f"loaded in {time.monotonic() - begun:.1f} s, {most} conversations at once", flush=True)
    uvicorn.run(app, host="127.0.0.1", port=specification["port"], log_level="warning", access_log=False)


def create_app(generator: Generator, shape: str, most: int, timeout: float, faults: dict) -> FastAPI:
    """Return the scoring server, answering in the shape of one of Azure's three."""
    app = FastAPI(openapi_url=None)
    app.state.running = 0

    @app.get("/")
    async def health() -> dict:
        return {"status": "healthy"}

    @app.post("/score")
    async def score(request: Request) -> JSONResponse:
        begun = time.monotonic()
        if app.state.running >= QUEUED * most:
            return _said(refusal(429, f"more than {QUEUED * most} requests at once; try again later"), begun)
        app.state.running += 1
        try:
            answer = await _score(await request.body(), generator, shape, timeout, faults)
        finally:
            app.state.running -= 1
        return _said(answer, begun)

    return app


async def _score(body: bytes, generator: Generator, shape: str, timeout: float, faults: dict) -> JSONResponse:
    tickets = []
    try:
        if faults.get("scoring-status") == 424:
            raise RuntimeError("the fault scoring-status is on")
        given, parameters = parse(body)
        conversations, answered = SHAPES[shape][0](given), SHAPES[shape][1]
        tickets = [generator.ask(messages, parameters) for messages in conversations]
        answers = asyncio.gather(*(asyncio.wrap_future(ticket.answer) for ticket in tickets))
        return JSONResponse(answered(await asyncio.wait_for(answers, timeout)))
    except BadRequestError as error:
        return refusal(400, f"{error}; expected is {EXPECTED}")
    except asyncio.TimeoutError:
        return refusal(408, f"no answer within the deployment's request timeout of {timeout:g} s")
    except Exception as error:
        traceback.print_tb(error.__traceback__)  # without the message, which could quote a prompt
        return model_failed(type(error).__name__)
    finally:
        for ticket in tickets:
            ticket.dropped = True


def refusal(status: int, message: str) -> JSONResponse:
    """Return an error as the scoring server writes it."""
    return JSONResponse({"error": {"code": str(status), "message": message}}, status)


def model_failed(reason: str) -> JSONResponse:
    """Return Azure's answer for a model that raised."""
    answer = refusal(424, f"the model failed: {reason}; the deployment's log has the traceback")
    answer.headers["ms-azureml-model-error-statuscode"] = "500"
    answer.headers["ms-azureml-model-error-reason"] = reason
    return answer


def _said(answer: JSONResponse, begun: float) -> JSONResponse:
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
    given = data.get("input_string")
    if not isinstance(given, list) or not given:
        raise BadRequestError("input_data has no list input_string with messages in it")
    return given, parameters_of({**_table(data, "parameters"), **_table(request, "params")})


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
