"""A method's answer while it is written, with a clock: the time to its first token, and the pace after it."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase, TextIteratorStreamer

from .batch import Batch
from .methods import METHODS, TextToText


@dataclass
class Answer:
    """An answer so far. Times are seconds from the question on; None with too few tokens to tell."""

    text: str = ""
    hint: str = ""  # what the Sharer wrote first, in text-to-text
    first_token: float | None = None
    tokens_per_second: float | None = None  # of the tokens after the first


def stream(name: str, batch: Batch, **kwargs) -> Iterator[Answer]:
    """A method's answer to a batch of one, again with each piece of text; the last is `Method.generate`'s.

    Args:
        batch: one of which nothing was computed yet, or that is not in the times.
        kwargs: as for transformers' `generate`. A consumer that stops reading ends it.
    """
    start, answer, method = time.perf_counter(), Answer(), METHODS[name]
    if isinstance(method, TextToText):
        hint = Writing(
            lambda streamer: method.hinted(batch, streamer=streamer), batch.processor.sharer_tokenizer
        )
        for piece in hint:
            answer.hint += piece
            yield answer
        method, batch = METHODS["receiver"], hint.result
    tokenizer = getattr(batch.processor, f"{method.reader}_tokenizer")
    writing = Writing(lambda streamer: method.generate(batch, streamer=streamer, **kwargs), tokenizer)
    for piece in writing:
        answer.text += piece
        if writing.times:
            answer.first_token = writing.times[0] - start
        if len(writing.times) > 1:
            answer.tokens_per_second = (len(writing.times) - 1) / (writing.times[-1] - writing.times[0])
        yield answer


class Writing:
    """The text of a `generate` in its own thread, piece by piece. `times`: of tokens. `result`: output."""

    def __init__(self, call: Callable, tokenizer: PreTrainedTokenizerBase):
        self.streamer = ClockedStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.call, self.result = call, None

    @property
    def times(self) -> list[float]:
        return self.streamer.times[1:]  # the first is that of the prompt

    def __iter__(self) -> Iterator[str]:
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self._run)
            try:
                yield from self.streamer
            finally:
                self.streamer.closed = True
            self.result = future.result()

    @torch.no_grad()
    def _run(self):
        try:
            return self.call(self.streamer)
        finally:
            self.streamer.end()  # an error before the first token would leave the reader waiting


class ClockedStreamer(TextIteratorStreamer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.times, self.closed = [], False

    def put(self, value: torch.Tensor) -> None:
        if self.closed:
            raise InterruptedError("Nobody reads on.")  # the only way to end `generate` from here
        self.times.append(time.perf_counter())
        super().put(value)
