"""Whose words are whose in what a chat template writes: found by comparing its texts, for any template."""

from collections.abc import Iterator
from contextlib import suppress
from secrets import token_hex

import numpy
from tokenizers import Encoding
from transformers import GenerationConfig, PreTrainedTokenizerBase

from local_azureml.engine.processes import UserError

SPOKEN = ("user", "assistant")
ASKED, ANSWERED = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}


class Turns:
    """A tokenizer, and what its chat template writes after a question and after an answer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        if not tokenizer.chat_template:
            raise UserError("the base model's tokenizer has no chat template; a chat model has one")
        if not tokenizer.is_fast:
            raise UserError(
                "the base model has no tokenizer.json, which tells where each token lies in a text"
            )
        self._tokenizer = tokenizer
        self._mark = token_hex(16)  # set after each content, to see where the template puts it
        try:
            self._before_answer = self._pieces([[ASKED]], add_generation_prompt=True)[0][1]
            self._after_answer = self._pieces([[ASKED, ANSWERED]])[0][2]
        except Exception as error:  # whatever a model's template raises
            raise UserError(f"the base model's chat template can't write an answer: {error}") from error

    @property
    def end(self) -> int | None:
        """The token that ends an answer, where the template writes one."""
        tokens = self._tokenizer(self._after_answer, add_special_tokens=False)["input_ids"]
        return next((token for token in tokens if token in self._tokenizer.added_tokens_decoder), None)

    def encode(self, conversations: list[list[dict]]) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:
        """Yield each conversation's tokens, and which of them the assistant has to write.

        That is what follows the text which asks for an answer, up to and with what ends the answer.
        """
        written = self._pieces(conversations)
        texts = ["".join(pieces) for pieces in written]
        encoded = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for row, (messages, pieces) in enumerate(zip(conversations, written, strict=True)):
            ids = encoded["input_ids"][row]
            spoken = numpy.zeros(len(ids), bool)
            for start, end in self._answers(messages, pieces):
                first = _token_at(encoded[row], start)
                if first < len(ids) and self._swallows(encoded[row], first, start):
                    first += 1
                spoken[first : _token_at(encoded[row], end)] = True
            yield numpy.array(ids, numpy.int32), spoken

    def _pieces(self, conversations: list[list[dict]], **how) -> list[list[str]]:
        """Return the text of each conversation, cut after the content of each question and answer."""
        marked = [list(map(self._marked, messages)) for messages in conversations]
        texts = self._tokenizer.apply_chat_template(marked, tokenize=False, **how)
        written = [text.split(self._mark) for text in texts]
        for messages, pieces in zip(conversations, written, strict=True):
            said = sum(message["role"] in SPOKEN for message in messages)
            if len(pieces) != said + 1:
                raise ValueError(f"of {said} questions and answers it writes {len(pieces) - 1}")
        return written

    def _marked(self, message: dict) -> dict:
        """Return a message with the mark before the space at its end, which some templates leave out."""
        if message["role"] not in SPOKEN:
            return message
        words = message["content"].rstrip()
        return {**message, "content": words + self._mark + message["content"][len(words) :]}

    def _answers(self, messages: list[dict], pieces: list[str]) -> Iterator[tuple[int, int]]:
        """Yield where each answer begins and ends in the whole text."""
        place, start = len(pieces[0]), 0
        spoken = [message for message in messages if message["role"] in SPOKEN]
        for message, piece in zip(spoken, pieces[1:], strict=True):
            space = message["content"][len(message["content"].rstrip()) :]
            if message["role"] == "user":
                start = place + _as_usual(piece, space, self._before_answer)
            else:
                yield start, place + _as_usual(piece, space, self._after_answer)
            place += len(piece)

    def _swallows(self, encoding: Encoding, token: int, place: int) -> bool:
        """Return whether a token of the template's took a space of the answer's along."""
        begins_before = encoding.token_to_chars(token)[0] < place
        return begins_before and encoding.ids[token] in self._tokenizer.added_tokens_decoder


def _token_at(encoding: Encoding, place: int) -> int:
    """Return the token that holds the character at a place, or the next one that holds any."""
    later = range(place, encoding.token_to_chars(len(encoding) - 1)[1])
    return next((t for char in later if (t := encoding.char_to_token(char)) is not None), len(encoding))


def _as_usual(piece: str, space: str, usual: str) -> int:
    """Return how far a text goes as usual, after the space at the end of a content where that was kept."""
    skipped = (0, len(space)) if piece.startswith(space) else (0,)
    return max(start + _common(piece[start:], usual) for start in skipped)


def _common(one: str, other: str) -> int:
    """Return the length of what two texts begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def end_tokens(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens at which an answer ends: the model's own and the end of a turn."""
    known = config.eos_token_id
    ends = set(known if isinstance(known, list) else [known]) | {tokenizer.eos_token_id}
    with suppress(UserError):  # a model that was never checked may have any template
        ends.add(Turns(tokenizer).end)
    return ends - {None}
