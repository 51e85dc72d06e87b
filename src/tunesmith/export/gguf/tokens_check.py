"""Whether a GGUF file's tokenizer makes of texts what the model's own does: by llama.cpp itself where it is installed,
else by reading the file as llama.cpp would (`tokens_read`).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from tunesmith.export.gguf.families import INSTEAD
from tunesmith.export.gguf.tokens_read import file_tokenizer
from tunesmith.export.gguf.vocabulary import Vocabulary
from tunesmith.export.types import StepError

TEXTS = (
    "The kettle sings; nobody listens.",
    "It's 7:45, they'll be late, aren't they? WE'RE NOT.",
    " leading,  double,   triple and trailing ",
    "1 12 123 1234 12345 3.14159 1,000,000 0x1F",
    "def area(r):\n    return 3 * r ** 2  # not quite\n\n\tprint(area(4))\r\n",
    '{"name": "Zoë", "tags": ["a", "b"], "n": -1.5e-3}',
    "Größe, naïve façade, œuvre, señor, Łódź, Đà Nẵng",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם. مرحبا بالعالم",
    "日本語の文章と、中文句子，한국어 문장.",
    "👩‍🔬 mixes 🧪 with 🔥 — “carefully”… ½ ² ③ Ⅳ",
    "camelCase snake_case SCREAMING-KEBAB a/b\\c user@example.org",
    "\n\n\n \n\t\t x\n",
    "ﬁne print № 5 ™ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \u200b\u00a0end",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaa!!!!!!!!!!!!????",
)
_CONVERSATIONS = (
    (("user", "Is the kettle on?"),),
    (("system", "Answer in one word."), ("user", "Größe, 東京 – 12.5 %?")),
    (("user", "Hello"), ("assistant", "Hello! What can I do?"), ("user", "  Count to three.\n")),
)
_BLANK_BYTES = ("<0x09>", "<0x0A>", "<0x0D>", "<0x20>")
_CHILD = """
import ctypes, json, sys, llama_cpp as lib
quiet = lib.llama_log_callback(lambda level, text, data: None)
lib.llama_log_set(quiet, ctypes.c_void_p(0))
path, texts = json.load(sys.stdin)
options = lib.llama_model_default_params()
options.vocab_only = True
vocabulary = lib.llama_model_get_vocab(lib.llama_model_load_from_file(path.encode(), options))
found = []
for text in texts:
    raw = text.encode()
    room = (lib.llama_token * (len(raw) + 8))()
    count = lib.llama_tokenize(vocabulary, raw, len(raw), room, len(room), False, True)
    found.append(list(room[:count]))
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class TokensChecked:
    """What was compared, and by whom; and in what rare cases llama.cpp does otherwise."""

    facts: Mapping[str, Any]
    notes: tuple[str, ...]


def check_tokens(path: Path, tokenizer: Any, vocabulary: Vocabulary, template: str | None) -> TokensChecked:
    """Compare both tokenizers on texts, on special tokens within them, and on conversations by the template.

    Raises `StepError` where they differ. The blank that SentencePiece and Unigram put before a text is an exception
    that is noted: some tokenizers put none behind a special token or before a blank, and llama.cpp always does.
    """
    marks = sorted({str(token) for token in tokenizer.get_added_vocab()}, key=len)
    alone = [vocabulary.begins + text for text in (*TEXTS, *marks)]
    within = [f"a{mark}b {mark}\n{mark}" for mark in marks] + ["".join(marks)]
    chats = _chats(tokenizer, template)
    texts = [*alone, *within, *chats]
    theirs, by = _read(path, texts)
    ours = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    different = [i for i, ids in enumerate(theirs) if ids != ours[i]]

    def blanks_only(i: int) -> bool:
        free = i >= len(alone) or texts[i].startswith(" ")
        return vocabulary.kind != "gpt2" and free and _solid(tokenizer, theirs[i]) == _solid(tokenizer, ours[i])

    if wrong := [i for i in different if not blanks_only(i)]:
        raise StepError(
            "tokenizer",
            f"the file's tokenizer cuts {len(wrong)} of {len(texts)} texts otherwise than the model's, "
            f"the first being {texts[wrong[0]][:60]!r}",
            INSTEAD,
        )
    asked = sum(i >= len(alone) + len(within) for i in different)
    facts = {"texts": len(texts), "by": by, "conversations": len(chats), "conversations_differing": asked}
    notes = []
    if asked:
        notes.append(
            "conversations become other tokens in llama.cpp than those that were learnt: it puts a blank behind "
            "special tokens or keeps one there, where the model's tokenizer does not"
        )
    elif different:
        notes.append(
            "llama.cpp puts a blank behind special tokens or before a blank, where the model's tokenizer puts none; "
            "conversations by the template are the same"
        )
    return TokensChecked(facts, tuple(notes))


def _chats(tokenizer: Any, template: str | None) -> list[str]:
    """What the template makes of conversations; of those that it allows."""
    found = []
    for turns in _CONVERSATIONS if template is not None else ():
        with suppress(TemplateError):
            messages = [{"role": role, "content": content} for role, content in turns]
            text = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
            found.append(str(text))
    return found


def _solid(tokenizer: Any, ids: Sequence[int]) -> str:
    """The tokens' texts without blanks of any kind."""
    pieces = [str(piece) for piece in tokenizer.convert_ids_to_tokens(list(ids))]
    return re.sub(r"[\s\u2581]", "", "".join("" if piece in _BLANK_BYTES else piece for piece in pieces))


def _read(path: Path, texts: Sequence[str]) -> tuple[list[list[int]], str]:
    if find_spec("llama_cpp") is None:
        tokenise = file_tokenizer(path)
        return [tokenise(text) for text in texts], "reading the file"
    asked = json.dumps([str(path), list(texts)])
    done = subprocess.run([sys.executable, "-c", _CHILD], input=asked, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        raise StepError("tokenizer", f"llama.cpp cannot read the file: {said}", INSTEAD)
    found: list[list[int]] = json.loads(done.stdout)
    return found, "llama.cpp"
