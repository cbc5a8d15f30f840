"""What is measured: one face for our models and their peers, so that all are fed, trained and stepped alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from hfa.config import from_node
from hfa.models import LanguageModel, ModelConfig

CONF = Path(__file__).parents[2] / "conf" / "model"
VOCAB_SIZE = 50257
PIECE = 2048  # tokens fed at once where a state can be carried: temporaries then stay in the cache's reach
LOSS_PIECE = 1024  # tokens whose logits exist at once in training: 200 MiB, instead of 3 GiB at 16K
TINY = {"d_model": 128, "num_layers": 4, "num_heads": 2, "d_ff": 256}  # conf/experiment/quickstart.yaml's sizes

ALL_FEATURES = "-all-features"  # ends the names of entries that leave out nothing in prefill

State = Any  # whatever a model carries from one call to the next


class Subject(ABC):
    """A decoder without its head, and the way of feeding it that serves it best.

    Its head reads the embedding's weights, by the product that its own package has for it.

    Args:
        body: the embedding, the layers and the last norm.
        embedding: [vocab_size, d_model].
        piece: tokens fed at once in prefill; None for all of them.
    """

    def __init__(self, body: nn.Module, embedding: Tensor, piece: int | None) -> None:
        self.body, self.embedding, self.piece = body, embedding, piece

    @abstractmethod
    def hidden(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Features [1, T, D] of tokens [1, T] that continue `state` (None: nothing came before), and the next state."""

    def deploy(self) -> None:
        """Do what is done to a model once before it serves."""
        self.body.eval()

    def last_hidden(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        """`hidden` of the last token at least, however a model comes to it best."""
        return self.hidden(tokens, state)

    @abstractmethod
    def state_bytes(self, length: int) -> int:
        """Bytes carried after `length` tokens."""

    def train_hidden(self, tokens: Tensor) -> Tensor:
        """Features for training: one pass over all tokens, and no state is asked for."""
        return self.hidden(tokens, None)[0]

    def head(self, hidden: Tensor) -> Tensor:
        """Features [..., D] to logits [..., vocab_size]."""
        return F.linear(hidden, self.embedding)

    def prefill(self, tokens: Tensor) -> tuple[Tensor, State]:
        """Logits [1, vocab_size] of the last token, and the state to continue from."""
        state: State | None = None
        for piece in tokens.split(self.piece or tokens.shape[1], dim=1):
            hidden, state = self.last_hidden(piece, state)
        return self.head(hidden[:, -1]), state

    def context(self, tokens: Tensor, room: int) -> State:
        """The state after `tokens`, with room for `room` more."""
        return self.prefill(tokens)[1]

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits [1, vocab_size] after one more token [1, 1]."""
        hidden, state = self.hidden(token, state)
        return self.head(hidden[:, -1]), state

    def auxiliary_loss(self) -> Tensor | None:
        """What training adds to the loss of the tokens."""
        return None

    @property
    def body_parameters(self) -> int:
        """Parameters without the embedding."""
        return sum(parameter.numel() for parameter in self.body.parameters()) - self.embedding.numel()


class Ours(Subject):
    """A model of this package, behind its public contract only."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model, model.embedding.weight, PIECE)
        self.model = model

    def deploy(self) -> None:
        super().deploy()
        self.model.pack()

    def hidden(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        return self.model.hidden(tokens, state)

    def last_hidden(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        return self.model.hidden(tokens, state, last=1)

    def head(self, hidden: Tensor) -> Tensor:
        return self.model.head(hidden)

    def state_bytes(self, length: int) -> int:
        return self.model.state_bytes(length)

    def auxiliary_loss(self) -> Tensor | None:
        return self.model.auxiliary_loss()


class AllFeatures(Ours):
    """The same model, doing what the peers' package does: the last layer's output is computed for every token."""

    def last_hidden(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        return self.hidden(tokens, state)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A name on the command line."""

    title: str
    ours: bool
    growth: Literal["linear", "quadratic"]  # of the time, as its authors say
    feeding: str
    load: Callable[[], Subject]
    same_body: bool = True  # 6 layers, 512 wide: may be compared by speed
    prefill_only: bool = False  # differs from another entry in prefill, and in nothing else


def our_entries() -> dict[str, Entry]:
    """The models of conf/model, two of them once more with all features, and the tiny HFA."""
    pieces = f"pieces of {PIECE} tokens, state carried"
    feeding = f"{pieces}; the last layer's output of the last token alone"
    quadratic = {"transformer"}
    entries = {
        path.stem: Entry(
            title=path.stem,
            ours=True,
            growth="quadratic" if path.stem in quadratic else "linear",
            feeding=feeding,
            load=_loader(path.stem, {}),
        )
        for path in sorted(CONF.glob("*.yaml"))
        if path.stem != "hf"  # of transformers: experiments.complexity.peers
    }
    for name in ("hfa", "simplemind"):
        entries[name + ALL_FEATURES] = Entry(
            title=f"{name}, all features",
            ours=True,
            growth="linear",
            feeding=f"{pieces}; the last layer's output of every token",
            load=_loader(name, {}, AllFeatures),
            prefill_only=True,
        )
    entries["hfa-tiny"] = Entry(
        title="hfa, tiny", ours=True, growth="linear", feeding=feeding, load=_loader("hfa", TINY), same_body=False
    )
    return entries


def our_config(name: str, **changes: object) -> ModelConfig:
    """The config of conf/model/`name`.yaml with `changes`; dropout off, since the peers have none."""
    node = OmegaConf.load(CONF / f"{name}.yaml")
    for key, value in {"dropout": 0.0, "vocab_size": VOCAB_SIZE, **changes}.items():
        OmegaConf.update(node, key, value)
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    return from_node({str(key): value for key, value in plain.items()}, "model", ModelConfig)  # type: ignore[type-abstract]


def random_tokens(length: int, seed: int) -> Tensor:
    """Tokens [1, length] with the frequencies of words (Zipf's law), so that contents repeat as they do in text."""
    weights = 1.0 / (torch.arange(VOCAB_SIZE) + 2.7)
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(weights, length, replacement=True, generator=generator)[None]


def _loader(name: str, changes: dict[str, int], subject: type[Ours] = Ours) -> Callable[[], Subject]:
    return lambda: subject(our_config(name, **changes).build())
