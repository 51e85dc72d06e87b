"""Whether a GGUF file's tokenizer makes of texts what the model's own does: by llama.cpp itself where it is installed,
else by reading the file as llama.cpp would (`tokens_read`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tunesmith.export.gguf.families import INSTEAD
from tunesmith.export.gguf.tokens_read import file_tokenizer
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


def check_tokens(path: Path, tokenizer: Any, kind: str) -> dict[str, Any]:
    """Compare both tokenizers on texts and on special tokens within them; returns what was compared.

    `kind`: the file's kind of tokenizer, as `Vocabulary.kind`.

    Raises `StepError` where they differ. The blank that SentencePiece and Unigram put before a text is an exception
    that is noted: some tokenizers put none behind a special token or before a blank, and llama.cpp always does.
    """
    marks = sorted({str(token) for token in tokenizer.get_added_vocab()}, key=len)
    within = [f"a{mark}b {mark}\n{mark}" for mark in marks] + ["".join(marks)]
    texts = [*TEXTS, *marks]
    theirs, by = _read(path, [*texts, *within])
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (*texts, *within)]
    different = [i for i, ids in enumerate(theirs) if ids != expected[i]]
    byte_level = kind == "gpt2"
    whole = [*texts, *within]
    if wrong := [i for i in different if byte_level or (i < len(texts) and not whole[i].startswith(" "))]:
        text = whole[wrong[0]]
        raise StepError(
            "tokenizer",
            f"the file's tokenizer cuts {len(wrong)} of {len(expected)} texts otherwise than the model's, "
            f"the first being {text[:60]!r}",
            INSTEAD,
        )
    facts: dict[str, Any] = {"tokenizer_checked": {"texts": len(expected), "by": by}}
    if different:
        facts["notes"] = [
            "llama.cpp puts a blank behind special tokens or before a blank, where the model's tokenizer puts none"
        ]
    return facts


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
