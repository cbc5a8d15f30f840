"""Answers that a model writes by itself, and whether they hold what was asked for: RULER's score.

Teacher forcing, as in the rest of an evaluation, shows a model its labels; here it sees only what it wrote. An answer
counts wherever it stands in that, in any order and in any case of letters, as in the published benchmark
(``string_match_all``). What differs: the model writes up to twice as many tokens as the expected answers have, since
RULER's 128 (needles), 30 (variables), 120 (common words) and 50 (frequent words) are no measure in the tokens of
another tokenizer; and it stops when all of them are there, which changes no score.
"""

from __future__ import annotations

import torch

from hfa.metrics.recall import Answer, find_answers
from hfa.models import LanguageModel
from hfa.models.state import State, select_rows
from hfa.types import IGNORE, Batch, Tokenizer

_LONGER = 2  # tokens that may be written, over those that are expected


def find_free(batch: Batch) -> int | None:
    """The first position, over all rows, from which answers could be written.

    Returns:
        None unless every row has a question, and ends with its answers and nothing else.
    """
    scored = batch.labels != IGNORE  # [B, T]
    first = scored.int().argmax(1)
    rests = torch.arange(scored.shape[1], device=scored.device) >= first[:, None]
    if not scored.any(1).all() or not torch.equal(scored, rests) or int(first.min()) == 0:
        return None
    return int(first.min())


@torch.no_grad()
def find_matches(model: LanguageModel, tokenizer: Tokenizer, batch: Batch, state: State, position: int) -> torch.Tensor:
    """Which answers of a batch are in what the model writes.

    Args:
        model: in eval mode.
        tokenizer: of the batch.
        batch: one for which :func:`find_free` gave `position`.
        state: of all rows, after the tokens before `position`.
        position: where it is.

    Returns:
        bool [B, T], true at all tokens of an answer that was found.
    """
    matched = torch.zeros(batch.labels.shape, dtype=torch.bool)
    answers: dict[int, list[Answer]] = {}
    for answer in find_answers(batch.gold.cpu().numpy()):
        answers.setdefault(answer.row, []).append(answer)
    for row, asked in answers.items():
        first = int((batch.labels[row] != IGNORE).int().argmax())
        labels = batch.labels[row]
        wanted = [_plain(tokenizer.decode(labels[one.start : one.stop].tolist())) for one in asked]
        tokens = batch.tokens[row : row + 1, position : first + 1].to(next(model.parameters()).device)
        room = _LONGER * (len(labels) - first)
        written = write(model, tokenizer, tokens, select_rows(state, [row]), room, until=wanted)
        for one, text in zip(asked, wanted, strict=True):
            matched[row, one.start : one.stop] = text in _plain(written)
    return matched


@torch.no_grad()
def write(
    model: LanguageModel,
    tokenizer: Tokenizer,
    tokens: torch.Tensor,
    state: State | None,
    count: int,
    until: list[str] | None = None,
) -> str:
    """What the model goes on with, the likeliest token each time.

    Args:
        model: in eval mode.
        tokenizer: its ids are the only ones that are written.
        tokens: int64 [1, T], read first.
        state: what came before them; None for nothing.
        count: tokens to write, at most; fewer when the text ends, or all of `until` have been written.
        until: in small letters, without space around; None stops for nothing.
    """
    features, state = model.hidden(tokens, state, last=1)
    logits = model.head(features[:, -1])
    written: list[int] = []
    while len(written) < count:
        token = logits[:, : tokenizer.vocab_size].argmax(-1)
        if token.item() == tokenizer.end_of_text:
            break
        written.append(int(token))
        if until and all(text in _plain(tokenizer.decode(written)) for text in until):
            break
        logits, state = model.step(token, state)
    return tokenizer.decode(written)


def _plain(text: str) -> str:
    return text.strip().lower()
