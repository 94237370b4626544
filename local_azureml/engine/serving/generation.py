"""Generates answers for many conversations at once; one may join or leave the batch at any token."""

import queue
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from local_azureml.engine.chat_completion import loading
from local_azureml.engine.chat_completion.checkpoint import find, weight_files
from local_azureml.engine.chat_completion.turns import end_tokens
from local_azureml.engine.serving.prompts import Prompts, load_tokenizer

SMALL = 50_000_000  # parameters; below, waking a second thread for each product costs more than it saves


class TooLongError(Exception):
    """A conversation that leaves the model no room to answer."""


@dataclass(frozen=True)
class Parameters:
    """How one answer is to be generated."""

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    max_new_tokens: int = 256
    ignore_eos: bool = False
    stop: str | list[str] = ()
    seed: int | None = None
    return_full_text: bool = False

    @property
    def samples(self) -> bool:
        return self.do_sample and self.temperature > 0


@dataclass
class Answer:
    """A generated text and what it took."""

    text: str
    finish_reason: str  # stop, or length where a limit cut it off
    prompt_tokens: int
    completion_tokens: int


@dataclass
class GenerationRequest:
    """One conversation waiting for its answer."""

    prompt: list[int]
    parameters: Parameters
    limit: int  # tokens that the answer may have
    random: torch.Generator | None = None  # of a request with a seed
    answer: Future = field(default_factory=Future)
    made: list[int] = field(default_factory=list)
    dropped: bool = False  # nobody waits any more

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.made)


class Generator:
    """A model, and the thread that lets it answer up to `most` conversations at once."""

    def __init__(self, folder: Path, most: int):
        self.prompts = Prompts(folder)
        self.tokenizer, self.model = load_tokenizer(folder), load_model(folder)
        if self.model.num_parameters() < SMALL:
            torch.set_num_threads(1)
        self.context = self.model.config.get_text_config().max_position_embeddings
        self.ends = end_tokens(self.model.generation_config, self.tokenizer)
        self.most = most
        self.waiting: queue.SimpleQueue[GenerationRequest] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="generator", daemon=True).start()

    def ask(self, prompt: list[int], parameters: Parameters) -> GenerationRequest:
        """Queue a conversation's prompt; its answer comes in the request's future."""
        room = self.context - len(prompt)
        if room < 1:
            raise TooLongError(
                f"the conversation has {len(prompt)} tokens; the model takes fewer than {self.context}"
            )
        random = None
        if parameters.seed is not None:
            random = torch.Generator(self.model.device).manual_seed(parameters.seed)
        request = GenerationRequest(prompt, parameters, min(room, parameters.max_new_tokens), random)
        self.waiting.put(request)
        return request

    @torch.inference_mode()
    def _work(self) -> None:
        batch = Batch(self.model)
        while True:
            asked = self._take(self.most - len(batch.requests), wait=not batch.requests)
            try:
                batch.step(asked)
                batch.keep([not self._finish(request) for request in batch.requests])
            except Exception as error:
                for request in {id(request): request for request in (*asked, *batch.requests)}.values():
                    if not request.answer.done():
                        request.answer.set_exception(error)
                batch = Batch(self.model)

    def _take(self, room: int, wait: bool) -> list[GenerationRequest]:
        """Return up to `room` of the requests that wait, at least one of them if `wait`."""
        taken = [self.waiting.get()] if wait else []
        while len(taken) < room and not self.waiting.empty():
            taken.append(self.waiting.get())
        return [request for request in taken if request.answer.set_running_or_notify_cancel()]

    def _finish(self, request: GenerationRequest) -> bool:
        """Hand over the answer if its last token ended it; say whether nothing more is to be done."""
        stopped = self._before_stop(request)
        ended = stopped is not None or (request.made[-1] in self.ends and not request.parameters.ignore_eos)
        if ended or len(request.made) >= request.limit:
            text = self._text(request.made) if stopped is None else stopped
            if request.parameters.return_full_text:
                text = self._text(request.prompt) + text
            reason = "stop" if ended else "length"
            request.answer.set_result(Answer(text.strip(), reason, len(request.prompt), len(request.made)))
            return True
        return request.dropped

    def _before_stop(self, request: GenerationRequest) -> str | None:
        """Return the text before the first of the texts that end an answer; None where none is in it."""
        given = request.parameters.stop
        stops = [given] if isinstance(given, str) else given
        if not stops:
            return None
        longest = 4 * max(map(len, stops))  # bytes: a token has at least one
        newest = self._text(request.made[-longest - 4 :])
        if not any(stop in newest for stop in stops):
            return None
        text = self._text(request.made)
        return text[: min((text.index(stop) for stop in stops if stop in text), default=None)]

    def _text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


def load_model(folder: Path) -> PreTrainedModel:
    """Return the model of a folder, from safetensors and without any code that lies in it."""
    checkpoint = find(folder)
    weight_files(checkpoint)  # safetensors or nothing: a pickle can run code
    model = loading.load_model(checkpoint, dtype="auto")
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


class Batch:
    """The conversations that are being answered, padded on the left to one length, and their cache."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.requests: list[GenerationRequest] = []
        self.cache = DynamicCache()  # of all their tokens but the last

    def step(self, asked: list[GenerationRequest]) -> None:
        """Let `asked` join, or give every conversation its next token."""
        if asked:
            self._join(asked)
        elif self.requests:
            last = [request.made[-1:] for request in self.requests]
            self._choose(self.requests, self._forward(self.requests, last, self.cache))

    def keep(self, wanted: list[bool]) -> None:
        """Let go of the conversations that are not `wanted`, and of columns that are padding to the rest."""
        if all(wanted):
            return
        rows = [row for row, kept in enumerate(wanted) if kept]
        self.requests = [self.requests[row] for row in rows]
        if not self.requests:
            self.cache = DynamicCache()
            return
        longest = max(request.length for request in self.requests) - 1
        kept = torch.tensor(rows, device=self.model.device)
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[kept, :, -longest:], layer.values[kept, :, -longest:]

    def _join(self, asked: list[GenerationRequest]) -> None:
        """Read the prompts of `asked`, choose their first tokens, and put their caches under the others'."""
        cache, longest = DynamicCache(), max(request.length for request in asked)
        prompts = [[0] * (longest - request.length) + request.prompt for request in asked]
        self._choose(asked, self._forward(asked, prompts, cache))
        if self.requests:
            self._append(cache)
        else:
            self.cache = cache
        self.requests = [*self.requests, *asked]

    def _append(self, cache: DynamicCache) -> None:
        gap = self.cache.get_seq_length() - cache.get_seq_length()
        mine, theirs = (0, 0, max(0, -gap), 0), (0, 0, max(0, gap), 0)  # columns that either lacks
        for layer, new in zip(self.cache.layers, cache.layers, strict=True):
            layer.keys = torch.cat([pad(layer.keys, mine), pad(new.keys, theirs)])
            layer.values = torch.cat([pad(layer.values, mine), pad(new.values, theirs)])

    def _forward(
        self, requests: list[GenerationRequest], ids: list[list[int]], cache: DynamicCache
    ) -> torch.Tensor:
        """Return the scores of each row's next token; `ids` are the tokens that the cache lacks."""
        lengths = [request.length for request in requests]
        length, longest = torch.tensor(lengths, device=self.model.device)[:, None], max(lengths)
        place = torch.arange(-longest, 0, device=self.model.device) + length  # below 0 is padding
        seen = place >= 0 if min(lengths) < longest else None  # a mask is looked into, which waits for a GPU
        outputs = self.model(
            input_ids=torch.tensor(ids, device=self.model.device),
            attention_mask=seen,
            position_ids=place[:, -len(ids[0]) :].clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return outputs.logits[:, -1].float()

    def _choose(self, requests: list[GenerationRequest], scores: torch.Tensor) -> None:
        tokens = scores.argmax(-1)
        rows = [row for row, request in enumerate(requests) if request.parameters.samples]
        if rows:
            tokens[rows] = sample(scores[rows], [requests[row] for row in rows])
        for request, token in zip(requests, tokens.tolist(), strict=True):
            request.made.append(token)


def sample(scores: torch.Tensor, requests: list[GenerationRequest]) -> torch.Tensor:
    """Draw a token for each row, at its own temperature, from its own top_k and of these from its top_p."""

    def column(values: Iterable) -> torch.Tensor:
        return torch.tensor(list(values), device=scores.device)[:, None]

    asked, most = [request.parameters for request in requests], scores.shape[-1]
    scaled, tokens = (scores / column(one.temperature for one in asked)).sort(descending=True)
    rank = torch.arange(most, device=scores.device)
    top_k = column(min(one.top_k or most, most) for one in asked)
    chances = scaled.masked_fill(rank >= top_k, -torch.inf).softmax(-1)
    before = chances.cumsum(-1) - chances
    before[:, 0] = 0  # the best token always stays
    chances = chances.masked_fill(before >= column(one.top_p for one in asked), 0)
    drawn = chances.multinomial(1)
    for row, request in enumerate(requests):
        if request.random:
            drawn[row] = chances[row].multinomial(1, generator=request.random)
    return tokens.gather(1, drawn)[:, 0]
