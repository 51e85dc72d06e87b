"""New tokens: in the tokenizer, in the embeddings and in the head; and the same again when an adapter is loaded.

A new token's rows begin at the mean of the rows that are in use (Hewitt 2021, "Initializing New Word Embeddings for
Pretrained Language Models"): its logit is then close to the average one, where a random row could win every
prediction. No draw is involved, so it begins the same every time. Spare rows that a base brings are used up first.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tunesmith.errors import EngineError, RecipeError, VerificationError
from tunesmith.models.load import LoadedBase
from tunesmith.ops.product import use_fast_linears


@dataclass(frozen=True, slots=True)
class AddedTokens:
    """What `add_tokens` did: tokens with their ids, and the rows of the embeddings before and after."""

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    rows_before: int
    rows: int

    @property
    def grown(self) -> bool:
        """Whether the embeddings have more rows than the base's; not where it had spare ones."""
        return self.rows > self.rows_before


def add_tokens(base: LoadedBase, tokens: Sequence[str], special: Collection[str] = ()) -> AddedTokens:
    """Add those of `tokens` that the base does not know, in place: tokenizer, embeddings, head (tied stays tied).

    `special` are those that structure a conversation and are left out of decoded answers, as a template's turn marks.
    Raises `RecipeError` for an empty or repeated token.
    """
    if empty := [token for token in tokens if not token.strip()]:
        raise RecipeError(f"{empty[0]!r} is no token", where="base.add_tokens", expected="text that is not blank")
    if len(set(tokens)) != len(tokens):
        twice = next(token for token in tokens if list(tokens).count(token) > 1)
        raise RecipeError(f"{twice!r} is given twice", where="base.add_tokens", expected="distinct tokens")
    used, known = len(base.tokenizer), base.tokenizer.get_vocab()
    rows = base.model.get_input_embeddings().weight.shape[0]
    new = tuple(token for token in tokens if token not in known)
    _extend(base.tokenizer, new, special)
    ids = tuple(base.tokenizer.convert_tokens_to_ids(list(new)))
    resize(base.model, max(rows, len(base.tokenizer)))
    _start_at_mean(base.model, ids, used)
    return AddedTokens(new, ids, rows, base.model.get_input_embeddings().weight.shape[0])


def resize(model: Any, rows: int) -> None:
    """Give embeddings and head so many rows, in place. New rows hold nothing of use until they are set."""
    old = model.get_input_embeddings().weight
    if old.shape[0] == rows:
        return
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.random.fork_rng(devices=[old.device] if old.is_cuda else []):  # the new modules are drawn at first
        model.resize_token_embeddings(rows, mean_resizing=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    use_fast_linears(model)


def embedding_paths(model: Any) -> tuple[str, ...]:
    """Paths of the embeddings and of the head: what new tokens must train."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    return tuple(path for path, module in model.named_modules() if any(module is end for end in ends))


def match_vocabulary(base: LoadedBase, folder: Path) -> AddedTokens | None:
    """Give a freshly loaded base the tokens of the tokenizer saved in `folder`, and as many embedding rows.

    Returns what was added, or None where the folder has no tokenizer, or one without further tokens.
    Raises `VerificationError` where its tokenizer is not the base's with tokens added, or the rows do not suffice.
    """
    if not (folder / "tokenizer_config.json").is_file():
        return None
    from transformers import AutoTokenizer

    try:
        saved = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"the tokenizer saved with the adapter cannot be read: {error}", where=str(folder)) from error
    rows = saved_rows(base.model, folder)
    ours, theirs = base.tokenizer.get_vocab(), saved.get_vocab()
    before = base.model.get_input_embeddings().weight.shape[0]
    if changed := [token for token, place in ours.items() if theirs.get(token) != place]:
        raise VerificationError(
            f"the tokenizer saved with the adapter is not the base's: {changed[0]!r} has another id there",
            where=str(folder),
            expected=f"the tokenizer of {base.name} with tokens added",
            fix="load the adapter on the base that its README.md names",
        )
    after = before if rows is None else rows
    new = sorted(theirs.keys() - ours.keys(), key=theirs.__getitem__)
    if not new:
        resize(base.model, max(after, len(base.tokenizer)))
        return None
    _extend(base.tokenizer, new, {str(token) for token in saved.added_tokens_decoder.values() if token.special})
    ids = tuple(base.tokenizer.convert_tokens_to_ids(new))
    if ids != tuple(theirs[token] for token in new):
        raise VerificationError("the added tokens get other ids on this base", where=str(folder))
    if max(ids) >= after:
        raise VerificationError(
            f"the adapter's tokenizer has {max(ids) + 1} tokens, the model only {after}",
            where=str(folder),
            expected="embeddings for every token, saved with the adapter",
        )
    resize(base.model, after)
    return AddedTokens(tuple(new), ids, before, after)


def _extend(tokenizer: Any, tokens: Sequence[str], special: Collection[str]) -> None:
    from transformers import AddedToken

    for token in tokens:
        marks = token in special
        tokenizer.add_tokens([AddedToken(token, special=marks, normalized=False)], special_tokens=marks)


def saved_rows(model: Any, folder: Path) -> int | None:
    """Rows of the embeddings among the tensors in a folder, or None where they are not saved there."""
    names = tuple(f"{path}.weight" for path in embedding_paths(model))
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (no mapping)
                if key.endswith(names):
                    return int(tensors.get_slice(key).get_shape()[0])
    return None


@torch.no_grad()
def _start_at_mean(model: Any, ids: Sequence[int], used: int) -> None:
    """Set the rows `ids` of embeddings, head and head's bias to the mean of the first `used` rows."""
    if not ids:
        return
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    for tensor in _distinct([embeddings.weight, head.weight, getattr(head, "bias", None)]):
        old = tensor[: min(used, min(ids))]
        tensor[list(ids)] = old.to(torch.float64).mean(0).to(tensor.dtype)


def _distinct(tensors: Sequence[nn.Parameter | None]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors if tensor is not None}.values())
