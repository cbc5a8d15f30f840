"""The engine that serves a model: token ids in, events out."""

from hfa.inference.engine import Engine, EngineConfig, Load
from hfa.inference.generation import Generation
from hfa.inference.request import Event, FinishEvent, FinishReason, GenerationRequest, Logprobs, Timing, TokenEvent
from hfa.inference.sampling import MAX_SEED, Sampling

__all__ = [
    "MAX_SEED",
    "Engine",
    "EngineConfig",
    "Event",
    "FinishEvent",
    "FinishReason",
    "Generation",
    "GenerationRequest",
    "Load",
    "Logprobs",
    "Sampling",
    "Timing",
    "TokenEvent",
]
