"""Peers: any causal model of the package `transformers`, built from its config with fresh weights, behind our contract.

The body is the package's. The head is ours: it reads the embedding's weights, for all models alike; a model whose own
head does more than that (a cap, a scale, a bias) is refused.

What the package does not allow, and what is done about it:

- A cache is changed by whoever reads on from it. Here a state is a value: the cache's tensors, copied where the package
  writes into them; a call builds the cache anew around them.
- Rows of a batch have one length: the package knows no others without masks. A state of rows that differ is refused.
- Layers that are all linear make a cache that does not know its length and raises: positions and masks are handed in.
- In training no state is kept: the one that is handed back is None.
- Where `fla` and its kin are installed, linear layers call Triton even on a CPU: they are hidden where there is no GPU.
- Some (Mamba, the first) continue a cache rightly by single tokens only: that is found out, and they are fed so.
- MiniMax's feed-forward is a mixture of experts, which sorts and copies tokens even for one expert: of one, it gets
  Llama's. It continues a cache token by token, however many it is fed.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfa.config import config
from hfa.errors import ConfigError
from hfa.models.base import LanguageModel, Mixer, ModelConfig, check_rows
from hfa.models.hf_cache import Shell, pack
from hfa.models.state import State, num_bytes

Size = Literal[
    "vocab_size", "d_model", "num_layers", "num_heads", "d_ff", "max_seq_len", "head_dim", "twice_num_heads", "ff_ratio"
]

_TRITON = ("fla", "mamba_ssm", "causal_conv1d", "xlstm", "mlstm_kernels", "kernels")
_CACHES = ("cache_params", "past_key_values", "state")  # what the package calls a cache, in one model or another
_POSITIONS = ("wpe", "position")  # what the package calls a table of them, which has an end
_OTHER_SENSES = ("vision", "visual", "audio", "image")  # whose positions are no tokens
_LINEAR = "linear_attention"  # what the package calls a layer with a recurrent state


@config
class HFConfig(ModelConfig):
    """See :class:`HFModel`.

    Args:
        architecture: the ``model_type`` of the package.
        sizes: names in its config, and which of our sizes each of them gets.
        settings: other values of its config.
        layer_type: of every layer, where its config has ``layer_types``; None leaves them alone.
    """

    name: ClassVar[str] = "hf"

    architecture: str
    sizes: dict[str, Size]
    settings: dict[str, Any]
    layer_type: str | None

    def check(self) -> None:
        super().check()
        if self.dropout:
            raise ConfigError("dropout", self.dropout, "0 for a model of transformers", "its own kind is in settings")
        for key, lost, expected in (
            ("tie_word_embeddings", False, "true: the head reads the embedding's weights, for all models alike"),
            ("output_router_logits", True, "false: a loss of the routers has no place in training here"),
        ):
            if self.settings.get(key) is lost:
                raise ConfigError(f"settings.{key}", lost, expected, "leave it out")
        if self.architecture == "xlstm" and self.d_model % 128:
            raise ConfigError("d_model", self.d_model, "a multiple of 128, for an xLSTM of transformers")

    @property
    def title(self) -> str:
        return f"hf/{self.architecture}"

    @property
    def twice_num_heads(self) -> int:
        """Heads of a block that is twice as wide as the model."""
        return 2 * self.num_heads

    @property
    def ff_ratio(self) -> float:
        return self.d_ff / self.d_model

    def values(self) -> dict[str, Any]:
        """What the package's config is made of."""
        sizes = {name: getattr(self, size) for name, size in self.sizes.items()}
        types = {"layer_types": [self.layer_type] * self.num_layers} if self.layer_type else {}
        return {**_plain(self.settings), **sizes, **types}

    def build(self) -> LanguageModel:
        """Allocate the model, with fresh weights from torch's global generator.

        Raises:
            ConfigError: `transformers` is missing, or has no such model, or its config no such value, or the model's
                logits are not those of a head that reads the embedding's weights.
        """
        model = HFModel(self, _body(self))
        _check_head(model)
        return model

    def mixer(self, layer: int) -> Mixer:
        raise NotImplementedError("the layers of a peer are the package's own")


class HFState(NamedTuple):
    """What a peer carries."""

    length: Tensor  # int64 [B], tokens so far
    tensors: tuple[Tensor, ...]  # of the package's cache, batch first


class HFModel(LanguageModel):
    """A body of `transformers`, and a head that reads its embedding's weights.

    Args:
        settings: its config.
        body: the model without its head.
    """

    ragged = False

    def __init__(self, settings: HFConfig, body: Any) -> None:
        nn.Module.__init__(self)
        self.config = settings
        self.body = body
        self.blocks = nn.ModuleList()  # none with a mixer of ours
        taken = inspect.signature(type(body).forward).parameters
        self.cache_name = next(name for name in _CACHES if name in taken)
        self._takes_positions = "position_ids" in taken
        types = set(getattr(body.config, "layer_types", None) or ())
        unmasked = self._takes_positions and types == {_LINEAR}
        self._no_masks = dict.fromkeys((_LINEAR, "full_attention")) if unmasked else None
        self._reach = min(_positions(body), default=None)
        self._shell: Shell | None = None
        self._one_by_one = False

    def run(self, tokens: Tensor, start: int, cache: Any) -> tuple[Tensor, Any]:
        """The package's own way: features [B, T, D] and the cache, which is changed by the next call.

        Args:
            tokens: int64 [B, T].
            start: tokens so far.
            cache: the package's; None before the first token.
        """
        passed = {self.cache_name: cache, "use_cache": True, **self.positions(tokens, start)}
        out = self.body(input_ids=tokens, **passed)
        return out.last_hidden_state, getattr(out, self.cache_name)

    def positions(self, tokens: Tensor, start: int) -> dict[str, Any]:
        """What the package would have to ask a cache for."""
        more: dict[str, Any] = {} if self._no_masks is None else {"attention_mask": self._no_masks}
        if self._takes_positions:
            more["position_ids"] = torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
        return more

    def _check_reach(self, length: int) -> None:
        """Refuse contexts that go beyond a table of learnt positions, as GPT-2's.

        Raises:
            ConfigError: it has fewer of them than `length`.
        """
        if self._reach is not None and length > self._reach:
            expected = f"at least {length}, the tokens of this context: the model has a learnt vector for each position"
            raise ConfigError("model.max_seq_len", self._reach, expected, "or give it shorter contexts")

    def hidden(self, tokens: Tensor, state: State | None = None, last: int | None = None) -> tuple[Tensor, State]:
        if self.training and state is None:
            self._check_reach(tokens.shape[1])
            out = self.body(input_ids=tokens, use_cache=False, **self.positions(tokens, 0))
            return out.last_hidden_state[:, -(last or 0) :], None
        if state is not None:
            check_rows(len(tokens), state)
        start = 0 if state is None else _one_length(state.length)
        self._check_reach(start + tokens.shape[1])
        cache = None if state is None or not start else self.shell.unpack(state.tensors, start)
        if start and self._one_by_one:
            parts = []
            for at, token in enumerate(tokens.split(1, dim=1)):
                features, cache = self.run(token, start + at, cache)
                parts.append(features)
            features = torch.cat(parts, dim=1)
        else:
            features, cache = self.run(tokens, start, cache)
        length = torch.full((tokens.shape[0],), start + tokens.shape[1], device=tokens.device)
        return features[:, -(last or 0) :], HFState(length, pack(cache)[0])

    def head(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embedding.weight)

    def init_state(self, batch_size: int) -> HFState:
        length = torch.zeros(batch_size, dtype=torch.long, device=self.embedding.weight.device)
        return HFState(length, self.shell.empty(batch_size))

    def state_bytes(self, seq_len: int) -> int:
        return num_bytes(self.shell.empty(1)) + 8 + seq_len * self.shell.growth_bytes

    @property
    def embedding(self) -> nn.Embedding:  # type: ignore[override]
        found: nn.Embedding = self.body.get_input_embeddings()
        return found

    @property
    def shell(self) -> Shell:
        """The structure of a cache: what a run over one and over two tokens leaves behind.

        Raises:
            ConfigError: the package's model does not continue what it has read.
        """
        if self._shell is None:
            training = self.training
            self.eval()
            with torch.no_grad():
                tokens = torch.arange(6, device=self.embedding.weight.device)[None] % self.config.vocab_size
                self._shell = Shell(*(self.run(tokens[:, :count], 0, None)[1] for count in (1, 2)))
                self._one_by_one = not self._continues(tokens, 3)
                if self._one_by_one and not self._continues(tokens, 1):
                    architecture = getattr(self.config, "architecture", "")
                    expected = "a model whose cache carries all that it has read, or one without such caches"
                    raise ConfigError("model.architecture", architecture, expected, "transformers' own does not")
            self.train(training)
        return self._shell

    def _continues(self, tokens: Tensor, count: int) -> bool:
        """Whether `count` tokens at a time, behind the first two, give what all at once do."""
        whole, _ = self.run(tokens, 0, None)
        features, cache = self.run(tokens[:, :2], 0, None)
        parts, start = [features], 2
        for piece in tokens[:, 2:].split(count, dim=1):
            features, cache = self.run(piece, start, cache)
            parts.append(features)
            start += piece.shape[1]
        return torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=1e-3)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; buffers that are not saved, and were built without memory, are computed."""
        found = super().load_state_dict(state_dict, strict=strict, assign=assign)
        if any(buffer.is_meta for buffer in self.buffers()):
            assert isinstance(self.config, HFConfig)
            computed = dict(_body(self.config).named_modules())
            for path, module in self.body.named_modules():
                for name, buffer in module.named_buffers(recurse=False):
                    if buffer.is_meta:
                        setattr(module, name, getattr(computed[path], name))
        return found


def transformers() -> Any:
    """The package, quiet, offline, and with its CPU paths where there is no GPU.

    Raises:
        ConfigError: it is not installed.
    """
    if not torch.cuda.is_available():
        for name in _TRITON:
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None: importing it fails
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import transformers
    except ImportError:
        raise ConfigError("model", "hf", "the package transformers", "pip install 'hfa[hf]'") from None
    transformers.utils.logging.set_verbosity_error()
    return transformers


def _body(settings: HFConfig) -> Any:
    package = transformers()
    if settings.architecture not in package.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        expected = "a model_type of transformers that has a causal model, e.g. llama, gpt2 or mamba2"
        raise ConfigError("architecture", settings.architecture, expected)
    kind = package.models.auto.configuration_auto.CONFIG_MAPPING[settings.architecture]
    everybodys = {each.name for each in dataclasses.fields(package.PreTrainedConfig)}
    known = ({each.name for each in dataclasses.fields(kind)} | set(kind.attribute_map)) - everybodys
    values = settings.values()
    for key in values:
        if key not in known:
            raise ConfigError("settings", key, f"values of {kind.__name__}", f"they are {', '.join(sorted(known))}")
    try:
        body = package.AutoModel.from_config(kind(**values))
    except Exception as error:  # each of its models has errors of its own for values that do not go together
        expected = f"sizes and settings that go together ({' '.join(str(error).split())})"
        raise ConfigError("architecture", settings.architecture, expected, "set them in +model.settings") from error
    if settings.architecture == "minimax" and values.get("num_local_experts") == 1:
        _without_experts(body)
    return body


def _positions(body: Any) -> Iterator[int]:
    """How many positions the tables of learnt ones have."""
    for path, module in body.named_modules():
        named = any(word in path for word in _POSITIONS) and not any(word in path for word in _OTHER_SENSES)
        if isinstance(module, nn.Embedding) and named:
            yield module.num_embeddings - getattr(module, "offset", 0)  # OPT's has some that are no positions


def _check_head(model: HFModel) -> None:
    """Refuse a model that makes its logits otherwise than by a product of features and weights.

    The package's own causal model says so, with this body and a head so large that no cap hides. Where nothing is
    allocated, to count or to load, there is nothing to see.
    """
    device = model.embedding.weight.device
    if device.type == "meta":
        return
    config = model.body.config
    with torch.device("meta"):
        causal = transformers().AutoModelForCausalLM.from_config(config)
    theirs = causal.get_output_embeddings()
    same = False
    if isinstance(theirs, nn.Linear) and len(list(theirs.parameters())) == 1:
        head = nn.Linear(theirs.in_features, 8, bias=False, device="meta")  # draws no random numbers
        weight = 1000 * torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(0))
        head.weight = nn.Parameter(weight.to(device))
        causal.set_output_embeddings(head)
        setattr(causal, causal.base_model_prefix, model.body)
        tokens = torch.arange(2, device=device)[None]
        training = model.training
        model.eval()
        with torch.no_grad():
            more = model.positions(tokens, 0)
            try:
                features = model.body(input_ids=tokens, use_cache=False, **more).last_hidden_state
            except RuntimeError as error:
                expected = f"sizes that fit together ({error})"
                remedy = "name those that are missing, e.g. +model.sizes.num_key_value_heads=num_heads"
                raise ConfigError("architecture", config.model_type, expected, remedy) from None
            logits = causal.eval()(input_ids=tokens, use_cache=False, **more).logits
            same = not logits.is_meta and torch.allclose(logits.float(), head(features).float(), rtol=1e-3)
        model.train(training)
    if not same:
        known = {name: value for name, value in config.to_dict().items() if "logit" in name or "lm_head" in name}
        values = ", ".join(f"{name}={value}" for name, value in known.items()) or "it has no values for that"
        expected = "a model whose logits are a product of features and weights, without cap, scale or bias"
        raise ConfigError("architecture", config.model_type, expected, f"turn them off in settings ({values})")


def _without_experts(body: Any) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    sizes = LlamaConfig(hidden_size=body.config.hidden_size, intermediate_size=body.config.intermediate_size)
    for layer in body.layers:
        layer.mlp = LlamaMLP(sizes)
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            nn.init.normal_(linear.weight, std=body.config.initializer_range)


def _one_length(length: Tensor) -> int:
    first = int(length[0])
    if not bool((length == first).all()):
        raise ValueError(f"rows of {length.tolist()} tokens: a model of transformers continues rows of one length only")
    return first


def _plain(value: Any) -> Any:
    """Tuples as the lists that the package expects."""
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return {key: _plain(one) for key, one in value.items()} if isinstance(value, dict) else value
