"""How probable each of many answers is after a prompt, exactly, in one pass for all of them.

Answers are sequences of tokens that often begin alike, so they are laid out as a tree: one node for every different
beginning. All nodes follow the prompt in a single sequence, each at the position it would have behind the prompt, and
a mask lets it see the prompt and its own ancestors only. A pass over prompt and tree therefore gives, at every node,
the same next-token probabilities as a pass over the prompt and that beginning alone; an answer's log-probability is the
sum along its path. (The layout is that of tree attention, arXiv:2305.09781.)

`score_rows` gives each answer a row of its own: it serves models whose attention takes no such mask. Which of the two a
model needs is not assumed: behind a few tokens of the first prompt both are computed.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.inference.abilities import keeps_keys_and_values
from tunesmith.inference.behind_prefix import Prefix

_BYTES = 256 * 2**20
"""Memory that the logits, the mask, or the copies of a prompt of one pass may take."""
_ALIKE = {torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Largest difference of log-probabilities (relative from 1 on) at which both ways count as the same in half precision.
A token that sees what it should not changes them by far more."""
_ALIKE_FULL = 1e-3

Ids = list[int]


@dataclass(frozen=True, slots=True)
class AnswerTree:
    """Answers as a tree. Node 0 is the prompt's end; node n > 0 holds `tokens[n - 1]` below `parents[n - 1]`.

    `edges` are the pairs (node, next token) that occur, `paths` those of each answer. Last tokens have no node: what
    comes after them does not matter.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    edges: tuple[tuple[int, int], ...]
    paths: tuple[tuple[int, ...], ...]

    def sight(self) -> Tensor:
        """Which node sees which, bool [N, N]: itself and its ancestors (the prompt's end not counted)."""
        size = len(self.tokens)
        seen = torch.eye(size, dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent:
                seen[node] |= seen[parent - 1]
        return seen


def answer_tree(answers: Sequence[Ids]) -> AnswerTree:
    """The tree of token sequences; none may be empty."""
    tokens: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    nodes: dict[tuple[int, int], int] = {}
    edges: dict[tuple[int, int], int] = {}
    paths = []
    for answer in answers:
        at, path = 0, []
        for depth, token in enumerate(answer):
            path.append(edges.setdefault((at, token), len(edges)))
            if depth == len(answer) - 1:
                break
            if (at, token) not in nodes:
                tokens.append(token)
                parents.append(at)
                depths.append(depth)
                nodes[at, token] = len(tokens)
            at = nodes[at, token]
        paths.append(tuple(path))
    return AnswerTree(tuple(tokens), tuple(parents), tuple(depths), tuple(edges), tuple(paths))


def answer_trees(answers: Sequence[Ids], vocabulary: int) -> list[AnswerTree]:
    """The answers in order, in as many trees as it takes for a pass over each to keep within the memory allowed."""
    tree = answer_tree(answers)
    nodes = len(tree.tokens) + 1
    if len(answers) == 1 or 4 * nodes * max(nodes, vocabulary) <= _BYTES:
        return [tree]
    middle = len(answers) // 2
    return answer_trees(answers[:middle], vocabulary) + answer_trees(answers[middle:], vocabulary)


def rows_at_once(tree: AnswerTree, width: int, shared: int, vocabulary: int) -> int:
    """How many prompts of up to `width` own tokens fit one pass."""
    nodes = len(tree.tokens) + 1
    mask = (width + nodes) * (shared + width + nodes)
    return max(1, _BYTES // (4 * max(nodes * vocabulary, mask)))


def score_tree(
    model: Any, cache: Any, shared: int, rest: Sequence[Ids], tree: AnswerTree, prefix: Prefix | None = None
) -> Tensor:
    """Log-probabilities [len(rest), answers], fp32.

    `rest` are the tokens of every row behind the `shared` first ones, at least one each. Those are in `cache`, or where
    the model attends behind a `prefix` (`attending_behind`) in that, and the cache is empty.
    """
    parameter = next(model.parameters())
    count, width, nodes, first = len(rest), max(map(len, rest)), len(tree.tokens), shared
    shared = 0 if prefix is not None else shared
    ids = torch.zeros(count, width + nodes, dtype=torch.long)
    places = torch.zeros(count, width + nodes, dtype=torch.long)
    seen = torch.zeros(count, width + nodes, shared + width + nodes, dtype=torch.bool)
    seen[:, :, :shared] = True
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    sight, depths = tree.sight(), torch.tensor(tree.depths, dtype=torch.long)
    for row, piece in enumerate(rest):  # padded on the left, between the shared beginning and the row's own part
        start = width - len(piece)
        ids[row, start:width] = torch.tensor(piece)
        ids[row, width:] = torch.tensor(tree.tokens, dtype=torch.long)
        places[row, start:width] = first + torch.arange(len(piece))
        places[row, width:] = first + len(piece) + depths
        seen[row, :width, shared : shared + width] = causal
        seen[row, width:, shared : shared + width] = True
        seen[row, start:, shared : shared + start] = False
        seen[row, width:, shared + width :] = sight
    hidden = torch.zeros(seen.shape, dtype=parameter.dtype).masked_fill_(~seen, torch.finfo(parameter.dtype).min)
    device = parameter.device
    out = model(
        input_ids=ids.to(device),
        attention_mask=hidden[:, None].to(device),
        position_ids=places.to(device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=torch.arange(width - 1, width + nodes, device=device),
        **({} if prefix is None else {"prefix": prefix}),
    )
    logits = out.logits
    at = torch.tensor([edge[0] for edge in tree.edges], device=device)
    token = torch.tensor([edge[1] for edge in tree.edges], device=device)
    steps = logits[:, at, token].float() - logits.float().logsumexp(-1)[:, at]
    return torch.stack([steps[:, list(path)].sum(-1) for path in tree.paths], dim=1)


def score_rows(model: Any, prompt: Ids, answers: Sequence[Ids], vocabulary: int) -> Tensor:
    """Log-probabilities [answers], fp32, of answers after one prompt: a row for each, behind the prompt's own pass.

    Padding stands behind the answers, where nothing sees it. A model that keeps more than keys and values reads the
    prompt anew in every row, as what it keeps cannot be continued by several tokens.
    """
    width = max(map(len, answers))
    ids = torch.zeros(len(answers), width, dtype=torch.long)
    for row, answer in enumerate(answers):
        ids[row, : len(answer)] = torch.tensor(answer)
    ids = ids.to(next(model.parameters()).device)
    steps = (_behind_one_pass if keeps_keys_and_values(model) else _whole_rows)(model, prompt, ids, vocabulary)
    return torch.stack([steps[row, : len(answer)].sum() for row, answer in enumerate(answers)])


def _behind_one_pass(model: Any, prompt: Ids, ids: Tensor, vocabulary: int) -> Tensor:
    """Log-probabilities [answers, W] of each token of ids [answers, W]; the prompt's keys and values are copied."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    start = torch.tensor([prompt], device=ids.device)
    out = model(input_ids=start, past_key_values=cache, use_cache=True, logits_to_keep=1)
    first: Tensor = out.logits[0, -1].float().log_softmax(-1)[ids[:, :1]]
    if ids.shape[1] == 1:
        return first
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in out.past_key_values.layers)
    more = []
    for part in torch.split(ids, max(1, _BYTES // max(4 * ids.shape[1] * vocabulary, kept))):
        cache = copy.deepcopy(out.past_key_values)
        cache.batch_repeat_interleave(len(part))
        logits = model(input_ids=part[:, :-1], past_key_values=cache, use_cache=True).logits
        more.append(logits.float().log_softmax(-1).gather(-1, part[:, 1:, None]).squeeze(-1))
    return torch.cat([first, torch.cat(more)], dim=1)


def _whole_rows(model: Any, prompt: Ids, ids: Tensor, vocabulary: int) -> Tensor:
    """As `_behind_one_pass`, without anything kept."""
    width = ids.shape[1]
    before = torch.tensor([prompt], device=ids.device)
    found = []
    for part in torch.split(ids, max(1, _BYTES // (4 * (len(prompt) + width) * vocabulary))):
        rows = torch.cat([before.expand(len(part), -1), part], dim=1)
        logits = model(input_ids=rows, use_cache=False, logits_to_keep=width + 1).logits[:, -width - 1 : -1]
        found.append(logits.float().log_softmax(-1).gather(-1, part[..., None]).squeeze(-1))
    return torch.cat(found)


def alike(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    """Whether two ways came to the same log-probabilities, up to the rounding of a model of this type."""
    allowed = _ALIKE.get(dtype, _ALIKE_FULL) * torch.maximum(one.abs(), other.abs()).clamp_min(1.0)
    return bool(((one - other).abs() <= allowed).all())
