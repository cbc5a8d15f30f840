"""What the model writes: the beginnings of held-out texts, continued."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from hfa.config import PositiveInt, config
from hfa.models import LanguageModel
from hfa.training.answering import write
from hfa.training.callbacks.base import CallbackConfig, Surroundings
from hfa.training.loggers import media
from hfa.training.module import LMModule
from hfa.types import Source, Tokenizer

log = logging.getLogger(__name__)


@config
class SamplesConfig(CallbackConfig):
    """After every validation, `num_samples` texts are continued greedily."""

    num_samples: PositiveInt
    prompt_tokens: PositiveInt
    new_tokens: PositiveInt

    def build(self, around: Surroundings) -> Samples:
        return Samples(self, around)


class Samples(L.Callback):
    """Appends to samples.txt in the run directory, and shows the texts to the loggers that take them."""

    def __init__(self, settings: SamplesConfig, around: Surroundings) -> None:
        self._settings, self._around = settings, around
        self._prompts: list[list[int]] | None = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or isinstance(trainer.strategy, ModelParallelStrategy):
            return  # a sharded model cannot run in one process alone
        assert isinstance(pl_module, LMModule)
        if self._prompts is None:
            self._prompts = prompts(self._around.source, self._settings.num_samples, self._settings.prompt_tokens)
        if not self._prompts:
            return
        tokenizer, step, count = self._around.tokenizer, trainer.global_step, self._settings.new_tokens
        rows = [
            [tokenizer.decode(prompt), goes_on(pl_module.model, prompt, count, tokenizer)] for prompt in self._prompts
        ]
        for logger in media(trainer.loggers):
            logger.show_texts("samples", ["prompt", "continuation"], rows, step)
        with (self._around.run_dir / "samples.txt").open("a", encoding="utf-8") as file:
            for prompt, text in rows:
                file.write(f"=== step {step}\n{prompt}\n--- goes on as\n{text}\n\n")


def prompts(source: Source, count: int, length: int) -> list[list[int]]:
    """The first tokens of the first held-out texts; none when there is no text in the data."""
    texts = [part for part in source.parts().values() if part.kind == "text"]
    if not texts:
        return []
    there = texts[0].num_examples("val")
    indices = range(count if there is None else min(count, there))
    return [texts[0].example(index, "val").tokens[:length].tolist() for index in indices]


def goes_on(model: LanguageModel, prompt: Sequence[int], count: int, tokenizer: Tokenizer) -> str:
    """The `count` likeliest next tokens, one after the other, as text; ends early with the text."""
    tokens = torch.tensor([list(prompt)], device=next(model.parameters()).device)
    return write(model, tokenizer, tokens, None, count)
