"""Tokenizers of every kind that is written as GGUF, trained on the spot."""

from __future__ import annotations

from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from tunesmith.export.gguf import splitting

CORPUS = (
    "The kettle sings and nobody listens; they'll be late, aren't they? It's 12:45, or 1234567.",
    "def area(radius):\n    return 3.14159 * radius ** 2\n\n\n\tprint(area(40))\r\n",
    "Größe, façade, œuvre, señor. Привет, мир! 日本語の文章 한국어 🧪🔥 camelCase SCREAMING snake_case",
    "  leading and   triple blanks, and!!! marks??? (again) [and] {again} <again>",
) * 3
ROWS = 700


def wrapped(tokenizer: Tokenizer, **more: Any) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("<pad>", "<s>", "</s>", "<|turn|>")])
    tokenizer.add_tokens([AddedToken("<fact>", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", **more
    )


def split_by(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def byte_level(pre: Any, *, ignore_merges: bool = False, normalizer: Any = None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    return wrapped(tokenizer)


def plain_bytes() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


BYTE_LEVEL = {
    "gpt-2": lambda: byte_level(plain_bytes()),
    "smollm": lambda: byte_level(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain_bytes()])
    ),
    "llama-bpe": lambda: byte_level(split_by(splitting.THREE_DIGITS), ignore_merges=True),
    "dbrx": lambda: byte_level(split_by(splitting.THREE_DIGITS)),
    "qwen2": lambda: byte_level(split_by(splitting.ONE_DIGIT), normalizer=normalizers.NFC()),
    "tekken": lambda: byte_level(split_by(splitting.CASED_ONE_DIGIT), ignore_merges=True),
    "gpt-4o": lambda: byte_level(split_by(splitting.CASED_THREE_DIGITS)),
}
"""By the name that llama.cpp gives their way of cutting."""


def sentence_piece(prefix: bool | str = True, start: bool = True, *, apart: bool = False) -> PreTrainedTokenizerFast:
    """BPE with byte fallback, as Llama 2 and Gemma have it: every way to make a token is among its merges.

    prefix: whether a blank is put before texts between special tokens; "first" puts one before the first alone.
    apart: no token holds words and punctuation, digits or line ends together, as in published vocabularies.
    """
    trained = Tokenizer(models.BPE())
    words = pre_tokenizers.Metaspace(prepend_scheme="always")
    single = pre_tokenizers.Split(Regex(r"[^\p{L}\p{M}\u2581]"), "isolated")
    trained.pre_tokenizer = pre_tokenizers.Sequence([words, single]) if apart else words
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=250, show_progress=False))
    by_rank = [token for token, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1])]
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *by_rank]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [
        (token[:i], token[i:])
        for token in by_rank
        for i in range(1, len(token))
        if token[:i] in vocabulary and token[i:] in vocabulary
    ]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    if prefix == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        steps = [normalizers.Prepend("\u2581")] if prefix else []
        tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    wrapped_one = wrapped(tokenizer, unk_token="<unk>")
    if start:
        bos = wrapped_one.convert_tokens_to_ids("<s>")
        wrapped_one.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", bos)]
        )
    return wrapped_one


def unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    alphabet = sorted(set("".join(CORPUS)) | set("abcdefghijklmnopqrstuvwxyz0123456789.,"))
    trainer = trainers.UnigramTrainer(
        vocab_size=500, unk_token="<unk>", special_tokens=["<unk>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrapped(tokenizer, unk_token="<unk>")
