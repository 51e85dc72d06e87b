"""The published tiny model stories260K as a folder that `transformers` loads, tokenizer included.

Its weights come from the checkpoint of `llama2.c` (see `examples/pretrain/stories260k.py`); its vocabulary, scores and
all, becomes a byte-pair tokenizer whose merges stand in the order of their scores, which cuts text the same way.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "pretrain"
_BYTES = range(3, 259)
_SPACE = "\u2581"


def save_stories(source: Path, folder: Path) -> Path:
    """Write the model of `source`, a folder with `stories260K.bin` and `tok512.bin`, to `folder` if it is not there."""
    if (folder / "tokenizer.json").is_file():
        return folder
    sys.path.insert(0, str(EXAMPLES))
    import stories260k

    model = stories260k.load_model(source / "stories260K.bin")
    vocabulary = stories260k.Vocabulary.load(source / "tok512.bin", model.config.vocab_size)
    tokenizer = _tokenizer(vocabulary.pieces, vocabulary.scores)
    for text in ("Once upon a time, there was a little girl named Lily.", "1/2 cup soft butter \u00e9", "  two spaces"):
        ours, theirs = tokenizer(text, add_special_tokens=False)["input_ids"], vocabulary(text)["input_ids"]
        if ours != theirs:
            raise SystemExit(f"the tokenizer cuts {text!r} into {ours} and should into {theirs}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# stories260K\n\nKarpathy's tinyllamas, converted.\n")
    return folder


def _tokenizer(pieces: tuple[bytes, ...], scores: tuple[float, ...]) -> PreTrainedTokenizerFast:
    names = ["<unk>", "<s>", "</s>", *(f"<0x{i - _BYTES.start:02X}>" for i in _BYTES)]
    names += [piece.decode().replace(" ", _SPACE) for piece in pieces[_BYTES.stop :]]
    ids = {name: i for i, name in enumerate(names)}
    if len(ids) != len(names):
        raise SystemExit("an entry of the vocabulary stands there twice")
    joined = sorted((name for name in names[_BYTES.stop :] if len(name) > 1), key=lambda name: -scores[ids[name]])
    merges = [
        (name[:cut], name[cut:])
        for name in joined
        for cut in range(1, len(name))
        if ids.get(name[:cut], 0) >= _BYTES.stop and ids.get(name[cut:], 0) >= _BYTES.stop
    ]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
