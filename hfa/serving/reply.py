"""An answer on its way: text as it becomes certain, then the summary, and an entry in the record in any case."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

from hfa.errors import RequestError
from hfa.inference import FinishEvent, FinishReason, Generation, GenerationRequest, Timing, TokenEvent
from hfa.network.base import Neuron
from hfa.serving.logprobs import Decode, TokenLogprob, likelihoods
from hfa.serving.schemas import Summary, Timings, Usage
from hfa.serving.selection import Choice
from hfa.serving.statistics import Statistics
from hfa.serving.text import TextAssembler

log = logging.getLogger(__name__)


class Reply:
    """One answer on its way::

        async for piece in reply.pieces(): ...     # text, as it becomes certain
        reply.summary                              # everything else but logprobs, once the iteration has ended

    The track record gets its one entry when the iteration ends, for whatever reason it does, or at `close`.

    Args:
        choice: which model, and why.
        request: what its engine was asked.
        generation: the engine's events.
        text: makes text of them.
        decode: token ids to bytes, for those who want to know about tokens.
        statistics: the track record.
        caller: who asked, for the log.
    """

    def __init__(
        self,
        choice: Choice,
        request: GenerationRequest,
        generation: Generation,
        text: TextAssembler,
        decode: Decode,
        statistics: Statistics,
        caller: Neuron,
    ) -> None:
        self.summary: Summary | None = None
        self.tokens: list[TokenEvent] = []  # that are part of the answer, so far
        self._choice = choice
        self._request = request
        self._generation = generation
        self._text = text
        self.decode = decode
        self._statistics = statistics
        self._caller = caller
        self._count = 0  # tokens that are part of the answer
        self._kept = False

    @property
    def model(self) -> str:
        """The architecture that answers."""
        return self._choice.name

    @property
    def has_logprobs(self) -> bool:
        """Whether they were asked for."""
        return self._request.logprobs is not None

    async def logprobs(self) -> list[TokenLogprob] | None:
        """Of the tokens so far, where they were asked for; on a thread, since there may be many."""
        return await asyncio.to_thread(likelihoods, self.tokens, self.decode) if self.has_logprobs else None

    def close(self, keep: int | None = None) -> None:
        """Give up what has not come yet; nothing happens when all has.

        Args:
            keep: tokens that reached the caller, which a session keeps; None for all so far.
        """
        self._generation.cancel(keep)
        self._keep(None)

    async def pieces(self) -> AsyncGenerator[str]:
        """The text. Closing the iterator early ends the work.

        Raises:
            RequestError: 500 when the model failed; 503 when the miner stops and 504 when the deadline passes before
                the first token.
        """
        end: FinishEvent | None = None
        try:
            while end is None:
                event = await self._generation.next()
                if isinstance(event, FinishEvent):
                    end = event
                else:
                    self._count += 1
                    self.tokens.append(event)
                    if piece := self._text.feed(event.token):
                        yield piece
            if rest := self._text.flush():
                yield rest
        finally:
            if end is None:
                self._generation.cancel()
            self._keep(end)
        assert end is not None  # every generation ends with one
        self._raise_if_empty_handed(end)
        self.summary = self._summarize(end)

    def _reason(self, end: FinishEvent) -> FinishReason:
        return "stop" if self._text.stopped else end.reason

    def _keep(self, end: FinishEvent | None) -> None:
        """Write the request down, once; what was computed for a caller who hung up is not known."""
        if self._kept:
            return
        self._kept = True
        end = end or FinishEvent("cancelled", 0, 0, Timing(0.0, 0.0, 0.0))
        name, reason, read, count = self._choice.name, self._reason(end), end.prompt_tokens, self._count
        took = f"{sum(end.timing):.3g} s"
        who = self._caller.hotkey if self._caller.uid is None else f"uid {self._caller.uid}"
        fields = {"model": name, "caller": self._caller.hotkey, "outcome": reason, "seconds": sum(end.timing)}
        fields |= {"prompt_tokens": read, "completion_tokens": count}
        log.info("%s for %s: %s, %d tokens in, %d out, %s", name, who, reason, read, count, took, extra=fields)
        self._statistics.end(
            name,
            "cancelled" if reason == "error" and end.imported else reason,
            prompt_tokens=read,
            completion_tokens=count,
            timing=end.timing,
            cached_tokens=end.cached_tokens,
            miss=end.miss,
            error=end.error,
        )

    def _raise_if_empty_handed(self, end: FinishEvent) -> None:
        reason = self._reason(end)
        if reason == "error":
            raise RequestError(500, f"{self._choice.name} failed on this request; ask again or name another model.")
        if reason == "shutdown" and not self._count:
            raise RequestError(503, "The miner is shutting down.")
        if reason == "displaced":
            raise RequestError(503, "The queue is full, and others came first; try again later.")
        if reason == "deadline" and not self._count:
            raise RequestError(504, f"No token came within the deadline of {self._request.deadline_s:g} s.")

    def _summarize(self, end: FinishEvent) -> Summary:
        prompt, count, timing = len(self._request.tokens), self._count, end.timing
        read = end.prompt_tokens - end.cached_tokens
        return Summary(
            model=self._choice.name,
            reason=self._choice.reason,
            finish_reason=self._reason(end),
            usage=Usage(prompt_tokens=prompt, completion_tokens=count, cached_tokens=end.cached_tokens),
            cache_miss=end.miss,
            context_length=end.prompt_tokens + count,
            seed=self._request.sampling.seed,
            timings=Timings(
                **timing._asdict(),
                total_s=sum(timing),
                prefill_tokens_per_s=read / timing.prefill_s if timing.prefill_s else None,
                tokens_per_s=(count - 1) / timing.decode_s if count > 1 and timing.decode_s else None,
            ),
        )
