"""The other side: a peer of `transformers`, whose requests are one batch from beginning to end."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.complexity.subjects import our_config


class Run(NamedTuple):
    """Seconds of a batch."""

    total_s: float
    first_s: float  # until the first token of all, who come together
    decode_s: float  # from then on


class Peer:
    """A peer of conf/model/hf, with random weights.

    Args:
        name: of its file there.
        dtype: of its weights.
    """

    def __init__(self, name: str, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.model: Any = our_config(f"hf/{name}").build().eval().to(dtype)

    @torch.inference_mode()
    def loop(self, tokens: Tensor, count: int) -> Run:
        """The fastest way round: the body once over all prompts, and logits of last tokens alone.

        Args:
            tokens: [B, T], prompts.
            count: tokens to generate.
        """
        began = time.perf_counter()
        features, cache = self.model.run(tokens, 0, None)
        last = self.model.head(features[:, -1]).argmax(-1)
        first = time.perf_counter()
        for number in range(1, count):
            features, cache = self.model.run(last[:, None], tokens.shape[1] + number - 1, cache)
            last = self.model.head(features[:, -1]).argmax(-1)
        end = time.perf_counter()
        return Run(end - began, first - began, end - first)

    @torch.inference_mode()
    def generate(self, tokens: Tensor, count: int) -> Run:
        """The package's own `generate`, greedy, of the same body under the package's own head."""
        import transformers

        causal = transformers.AutoModelForCausalLM.from_config(self.model.body.config)
        base = causal.base_model_prefix
        setattr(causal, base, self.model.body)
        causal.eval().to(self.model.embedding.weight.dtype)
        steps: list[float] = []

        def note(_: Tensor, logits: Tensor) -> Tensor:
            steps.append(time.perf_counter())
            return logits

        began = time.perf_counter()
        out = causal.generate(
            tokens,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            logits_processor=transformers.LogitsProcessorList([note]),
        )
        end = time.perf_counter()
        assert out.shape[1] == tokens.shape[1] + count
        return Run(end - began, steps[0] - began, end - steps[0])
