"""From a request's text to an answer on its way: pick a model and start its engine on it."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hfa.data.tokenizers import StreamDecoder
from hfa.errors import RequestError
from hfa.inference import Engine, GenerationRequest, Sampling
from hfa.network.base import Neuron
from hfa.serving.reply import Reply
from hfa.serving.schemas import GenerateBody, ModelStatus
from hfa.serving.selection import Candidate, Choice, SelectionConfig, choose
from hfa.serving.statistics import Statistics
from hfa.serving.text import TextAssembler
from hfa.types import Tokenizer

_SEED_BITS = 53  # a seed we draw survives a trip through a double


class Served(NamedTuple):
    """A model that answers requests."""

    engine: Engine
    tokenizer: Tokenizer
    path: Path  # of its artifact

    def status(self) -> ModelStatus:
        load = self.engine.load()
        return ModelStatus(
            device=load.device,
            parameters=self.engine.num_parameters,
            max_seq_len=self.engine.max_seq_len,
            running=load.running,
            waiting=load.waiting,
            state_bytes=load.state_bytes,
            session_bytes=self.engine.session_bytes(),
            budget_bytes=load.budget_bytes,
        )


class _Loaded(NamedTuple):
    """The models of one moment; a request is answered by those of one."""

    models: Mapping[str, Served]
    vocabularies: Mapping[str, str]  # fingerprints of their tokenizers

    @classmethod
    def of(cls, models: Mapping[str, Served]) -> _Loaded:
        return cls(models, {name: model.tokenizer.fingerprint() for name, model in models.items()})


class Limits(NamedTuple):
    """What a request may ask for.

    Args:
        default_max_tokens: when it does not say.
        max_tokens: at most.
        deadline_s: at most, and when it does not say.
        share_prompts: whether callers find what others' prompts, that begin alike, have had read.
    """

    default_max_tokens: int
    max_tokens: int
    deadline_s: float
    share_prompts: bool


class Order(NamedTuple):
    """What is asked besides the prompt, and by whom it may be answered.

    Args:
        max_tokens: from `Service.max_tokens`.
        sampling: how tokens are chosen.
        stop: texts that end the answer.
        wish: the architecture asked for.
        deadline_s: asked for; the miner's own is a limit.
        logprobs: as the engine takes them.
        session: architecture and name of the session that the prompt continues.
    """

    max_tokens: int
    sampling: Sampling
    stop: Sequence[str] = ()
    wish: str | None = None
    deadline_s: float | None = None
    logprobs: int | None = None
    session: tuple[str, str] | None = None


class _Chosen(NamedTuple):
    """Who answers a request, and what its engine is asked."""

    choice: Choice
    model: Served
    request: GenerationRequest
    text: Callable[[], TextAssembler]


class Service:
    """The models of a miner and what becomes of a request to them.

    Args:
        models: by architecture.
        default: the architecture that answers unless something speaks against it.
        statistics: the track record, read and kept.
        policy: when a model is avoided.
        limits: of a request.
    """

    def __init__(
        self,
        models: Mapping[str, Served],
        *,
        default: str,
        statistics: Statistics,
        policy: SelectionConfig,
        limits: Limits,
    ) -> None:
        self._loaded = _Loaded.of(models)
        self.default = default
        self.statistics = statistics
        self._policy = policy
        self._limits = limits

    @property
    def models(self) -> Mapping[str, Served]:
        """What answers now, by architecture."""
        return self._loaded.models

    def release(self) -> None:
        """Let go of the models, after the last request: FastAPI keeps the endpoints of an app, and with them this."""
        self._loaded = _Loaded.of({})

    def swap(self, name: str, model: Served) -> Served | None:
        """Let `model` answer from now on, and return the one that did; the caller ends it, which drops no request."""
        old = self._loaded.models.get(name)
        self._loaded = _Loaded.of({**self._loaded.models, name: model})
        return old

    async def answer(self, body: GenerateBody, caller: Neuron, session: tuple[str, str] | None = None) -> Reply:
        """Pick a model and start it on the request.

        Args:
            body: what is asked.
            caller: who asks.
            session: architecture and name of the session to be continued.

        Raises:
            RequestError: 404, 409, 413, 422 or 503, when no model can take it.
        """
        order = Order(
            max_tokens=self.max_tokens(body.max_tokens),
            sampling=_sampling(body),
            stop=body.stop,
            wish=body.model,
            deadline_s=body.deadline_s,
            logprobs=body.logprobs,
            session=session,
        )
        # on a thread: an engine that is busy with a long session would keep the event loop waiting for its lock
        return await asyncio.to_thread(self.start, body.prompt, order, caller)

    def start(self, prompt: str | Sequence[int], order: Order, caller: Neuron) -> Reply:
        """What `answer` does, without an event loop; a prompt in tokens is for the model wished or the default."""
        return self.start_together([(prompt, order)], caller)[0]

    def start_together(self, asked: Sequence[tuple[str | Sequence[int], Order]], caller: Neuron) -> list[Reply]:
        """Start one model on several requests, or on none of them. Raises as `answer`."""
        while True:
            loaded = self._loaded
            try:
                return self._start_together(loaded, asked, caller)
            except RequestError as error:
                if error.status != 503 or loaded is self._loaded:
                    raise  # else the model was swapped in between, and its successor has not been asked

    def _start_together(
        self, loaded: _Loaded, asked: Sequence[tuple[str | Sequence[int], Order]], caller: Neuron
    ) -> list[Reply]:
        texts = {id(prompt): prompt for prompt, _ in asked}  # the same one may be asked several times
        encoded = {key: self._encoded(loaded, prompt, asked[0][1].wish) for key, prompt in texts.items()}
        chosen: list[_Chosen] = []
        for prompt, order in asked:
            order = order if not chosen else order._replace(wish=chosen[0].choice.name)
            chosen.append(self._choose(loaded, encoded[id(prompt)], order, caller))
        model, requests = chosen[0].model, [one.request for one in chosen]
        session = asked[0][1].session
        if session is not None:
            generations = [model.engine.submit(requests[0], session[1])]
        else:
            generations = model.engine.submit_together(requests)
        self.statistics.begin(chosen[0].choice.name)
        decode = model.tokenizer.decode_bytes
        return [
            Reply(choice, request, generation, text(), decode, self.statistics, caller)
            for (choice, _, request, text), generation in zip(chosen, generations, strict=True)
        ]

    def _choose(self, loaded: _Loaded, prompts: Mapping[str, tuple[int, ...]], order: Order, caller: Neuron) -> _Chosen:
        wish = order.wish
        if order.session is not None:
            wish, _ = order.session
            prompts = {name: tokens for name, tokens in prompts.items() if name == wish}
        candidates = [
            self._candidate(name, loaded.models[name], len(tokens) + order.max_tokens)
            for name, tokens in prompts.items()
        ]
        if wish is not None and wish not in loaded.models and loaded.models:
            raise RequestError(404, f"model: got {wish[:40]!r}, and this miner serves {', '.join(loaded.models)}.")
        choice = choose(candidates, self._policy, default=self.default, wish=wish)
        model = loaded.models[choice.name]

        def text() -> TextAssembler:
            return TextAssembler(StreamDecoder(model.tokenizer), order.stop)

        request = GenerationRequest(
            tokens=prompts[choice.name],
            max_tokens=order.max_tokens,
            sampling=order.sampling,
            stop_tokens=frozenset({model.tokenizer.end_of_text}),
            until=(lambda: text().ends) if order.stop else None,
            deadline_s=min(self._limits.deadline_s, order.deadline_s or self._limits.deadline_s),
            priority=priority(caller),
            caller=caller.hotkey,
            cache_salt="" if self._limits.share_prompts else caller.hotkey,
            logprobs=order.logprobs,
        )
        return _Chosen(choice, model, request, text)

    def _encoded(self, loaded: _Loaded, prompt: str | Sequence[int], wish: str | None) -> dict[str, tuple[int, ...]]:
        """A prompt in the tokens of each model that may answer it.

        One that comes in tokens is for the model wished, for the default, or for whichever there is.
        """
        if isinstance(prompt, str):
            return _encode(loaded, prompt)
        name = wish or (self.default if self.default in loaded.models else next(iter(loaded.models), self.default))
        return {name: tuple(prompt)} if name in loaded.models else {}

    def max_tokens(self, asked: int | None) -> int:
        """What a request generates at most. Raises RequestError 422 for more than this miner does."""
        asked = self._limits.default_max_tokens if asked is None else asked
        if asked > self._limits.max_tokens:
            raise RequestError(
                422, f"max_tokens: got {asked}, and this miner generates {self._limits.max_tokens} at most."
            )
        return asked

    def _candidate(self, name: str, model: Served, seq_len: int) -> Candidate:
        engine = model.engine
        load = engine.load()
        return Candidate(
            name=name,
            seq_len=seq_len,
            max_seq_len=engine.max_seq_len,
            state_bytes=engine.state_bytes(seq_len),
            budget_bytes=load.budget_bytes,
            room=load.room,
            track=self.statistics.track(name, self._policy.window),
        )


def priority(caller: Neuron) -> int:
    """A caller's place in the queue: one higher for every tenfold stake, so that small differences displace nobody."""
    return int(math.log10(1.0 + caller.stake_tao))


def _encode(loaded: _Loaded, prompt: str) -> dict[str, tuple[int, ...]]:
    """The prompt in the tokens of each model; models that share a tokenizer share the work."""
    encoded: dict[str, tuple[int, ...]] = {}
    for name, key in loaded.vocabularies.items():
        if key not in encoded:
            encoded[key] = tuple(loaded.models[name].tokenizer.encode(prompt))
    return {name: encoded[key] for name, key in loaded.vocabularies.items()}


def draw_seed() -> int:
    """A seed for a request that names none."""
    return secrets.randbits(_SEED_BITS)


def _sampling(body: GenerateBody) -> Sampling:
    return Sampling(
        seed=draw_seed() if body.seed is None else body.seed,
        temperature=body.temperature,
        top_k=body.top_k,
        top_p=body.top_p,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
    )
