"""What goes over the wire: the shapes of requests and answers, as OpenAPI shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from hfa.errors import RequestError
from hfa.inference import MAX_SEED, FinishReason
from hfa.inference.request import MAX_LOGPROBS
from hfa.serving.logprobs import TokenLogprob

B = TypeVar("B", bound=BaseModel)
_UNKNOWN = "unknown_field"
_SHOWN = 60  # characters of what was got
StopText = Annotated[str, Field(min_length=1, max_length=256)]


class Sent(BaseModel):
    """What comes from outside, refused at the first thing that is wrong.

    Pydantic would collect all of them, and a body of a megabyte can have a million.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        unknown = (key for key in data if key not in cls.model_fields) if isinstance(data, dict) else ()
        if (name := next(iter(unknown), None)) is not None:
            raise PydanticCustomError(_UNKNOWN, "{name}", {"name": name[:64]})
        return data


class GenerateBody(Sent):
    """A prompt to continue."""

    model_config = ConfigDict(strict=True)

    prompt: str = Field(
        min_length=1,
        description="The text to continue, as long as the model's limit allows.",
        examples=["The capital of France is"],
    )
    max_tokens: int | None = Field(
        None, ge=1, description="Tokens to generate at most; left out, the miner's default.", examples=[32]
    )
    temperature: float = Field(
        0.0, ge=0, le=100, description="0 takes the likeliest token; 1 samples as the model has it."
    )
    top_k: int = Field(0, ge=0, le=2**31 - 1, description="Sample among the k likeliest tokens; 0 for all.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample among the likeliest tokens that hold this mass.")
    min_p: float = Field(0.0, ge=0, le=1, description="Drop tokens below this fraction of the likeliest one.")
    repetition_penalty: float = Field(
        1.0, ge=0.01, le=100, description="Above 1, tokens that were there before become less likely."
    )
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Same seed, same text. Left out, one is drawn and told in the answer."
    )
    stop: list[StopText] = Field(
        default_factory=list,
        max_length=16,
        fail_fast=True,
        description="The answer ends before the first of these texts.",
    )
    logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Tell how likely each token was, and this many of the likeliest."
    )
    model: str | None = Field(
        None,
        max_length=64,
        description="The architecture that has to answer; left out, the miner picks one.",
        examples=["hfa"],
    )
    stream: bool = Field(False, description="Answer with server-sent events, piece by piece.")
    deadline_s: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds after which the answer ends as it is; the miner has a limit too.",
    )


class Usage(BaseModel):
    """Tokens of the model that answered."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = Field(description="That a checkpoint or the session had, and were not read.")


class Timings(BaseModel):
    """Where the time went, as measured on the miner."""

    queue_s: float = Field(description="Waiting for its turn.")
    prefill_s: float = Field(description="Reading the prompt, up to the first token.")
    decode_s: float = Field(description="From the first token to the last.")
    total_s: float
    prefill_tokens_per_s: float | None = Field(description="Prompt tokens read per second.")
    tokens_per_s: float | None = Field(description="Tokens generated per second after the first; null for one or none.")


class Summary(BaseModel):
    """What there is to say about an answer besides its text."""

    model: str = Field(description="The architecture that answered.")
    reason: str = Field(description="Why it was picked.")
    finish_reason: FinishReason = Field(
        description="stop: it ended by itself or at a stop text. length: max_tokens were generated. "
        "deadline: time was up. shutdown: the miner was stopped."
    )
    usage: Usage
    cache_miss: str = Field(
        description="Why no more of the prompt was found: short, new, evicted, other model, other tokenizer, no room "
        "or off; empty when nothing was missed."
    )
    context_length: int = Field(description="Tokens the model held at the end, prompt and answer together.")
    seed: int = Field(description="Send it again for the same text.")
    timings: Timings


class Report(Summary):
    """All there is to say about an answer besides its text."""

    logprobs: list[TokenLogprob] | None = Field(description="Of each token of the answer, where they were asked for.")


class Answer(Report):
    """The text that continues the prompt."""

    text: str


class Done(Report):
    """The last event of a stream."""

    done: Literal[True] = True


class Problem(BaseModel):
    code: str = Field(description="For programs.", examples=["rate_limited"])
    message: str = Field(description="One sentence for people.")


class Refusal(BaseModel):
    """Why there is no answer."""

    error: Problem


class ModelStatus(BaseModel):
    """One model as it is now."""

    device: str
    parameters: int
    max_seq_len: int
    running: int
    waiting: int
    state_bytes: int = Field(description="Reserved for the states of running requests.")
    session_bytes: int = Field(description="What the states of sessions that wait have beside their pages.")
    budget_bytes: int


class Health(BaseModel):
    """That the process lives, and what it serves."""

    status: Literal["ok", "no models"]
    default: str = Field(description="The architecture that answers unless there is a reason against it.")
    models: dict[str, ModelStatus]
    network: str
    netuid: int
    hotkey: str = Field(description="The receiver that requests are to be signed for.")
    metagraph_age_s: float | None
    uptime_s: float


class LastError(BaseModel):
    at: str = Field(description="UTC, ISO 8601.")
    error: str = Field(description="Its type; what it said is in the log and on the status page.")


class ModelStatistics(BaseModel):
    """The track record of one architecture since its statistics file was begun."""

    requests: int
    succeeded: int
    failed: int
    cancelled: int = Field(description="Given up by the caller, or failed on a state that the caller had imported.")
    expired: int = Field(description="Ended by a deadline, a shutdown, or a caller of greater stake.")
    success_rate: float | None = Field(description="Succeeded, of those that succeeded or failed.")
    mean_s: float | None
    p50_s: float | None = Field(description="Percentiles are of the latest requests.")
    p95_s: float | None
    p99_s: float | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = Field(description="Of the prompts, found in checkpoints or sessions.")
    cache_misses: dict[str, int] = Field(description="Why no more was found, and how often.")
    prefill_tokens_per_s: float | None
    tokens_per_s: float | None = Field(description="Generated per second of decoding, after the first.")
    last_error: LastError | None


class StatisticsBody(BaseModel):
    architectures: dict[str, ModelStatistics]


def parse(body: bytes) -> GenerateBody:
    """The request in a raw body.

    Raises:
        RequestError: 400 for what is no JSON, 422 for what is no request; the first problem, by name.
    """
    return parse_as(GenerateBody, body)


def parse_as(schema: type[B], body: bytes) -> B:
    """The request of a schema in a raw body. Raises as `parse`."""
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "json_invalid":
        raise RequestError(400, f"The body is not JSON ({problem['msg'].removeprefix('Invalid JSON: ')}).")
    if problem["type"] == _UNKNOWN:
        path = ".".join((*map(str, problem["loc"]), problem["msg"]))
        fields = "" if where else f"; the fields are {', '.join(schema.model_fields)}"
        raise RequestError(422, f"{path}: no such field{fields}.")
    if problem["type"] == "missing":
        raise RequestError(422, f"{where}: missing; it has to be sent.")
    expected = problem["msg"].removeprefix("Input should be ")
    for words in ("String should have ", "List should have ", " after validation"):
        expected = expected.replace(words, "")
    raise RequestError(422, f"{where or 'body'}: got {_shown(problem['input'])}, expected {expected}.")


def _shown(value: Any) -> str:
    """What was got, however much it was."""
    if isinstance(value, list | dict):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    shown = repr(value[: 2 * _SHOWN] if isinstance(value, str) else value)
    return shown if len(shown) < _SHOWN + 4 else f"{shown[:_SHOWN]}..."
