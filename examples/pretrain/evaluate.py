"""How good a small base is at language, and at using what stands in its prompt.

    python examples/pretrain/evaluate.py MODEL --validation work/pretrain

Prints one JSON object:

- `bits_per_byte`: by text file, on whole documents that were held out; comparable between tokenizers. Each document
  is read in windows of the model's context, so the first tokens of a window have little before them.
- `copy_exact`: share of lists of eight random words that are repeated exactly, by greedy decoding in the chat template.
- `look_up_exact`: share of questions for the value of one of six keys that are answered exactly.
- `induction`: share of tokens guessed right in the second copy of a random sequence of twenty words, and in the first.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Questions = list[tuple[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of the model and its tokenizer")
    parser.add_argument("--validation", type=Path, required=True, help="folder with validation_*.txt")
    parser.add_argument("--bytes", type=int, default=300_000, help="at most so many bytes of each validation text")
    parser.add_argument("--questions", type=int, default=100, help="questions of each copying test")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    texts = {
        path.stem.removeprefix("validation_"): path for path in sorted(options.validation.glob("validation_*.txt"))
    }
    if not texts:
        parser.error(f"no validation_*.txt in {options.validation}; prepare.py writes them")
    print(json.dumps(evaluate(options.model, texts, options.bytes, options.questions, options.seed), indent=2))


def evaluate(folder: Path, texts: dict[str, Path], most_bytes: int, questions: int, seed: int) -> dict[str, Any]:
    """All measures; `texts` maps a name to a file of documents separated by two empty lines."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    documents = {name: read_documents(path, most_bytes) for name, path in texts.items()}
    rng = random.Random(seed)
    everything = " ".join(document for found in documents.values() for document in found)
    words = sorted(set(re.findall(r"\b[a-z]{4,9}\b", everything)))
    lists = [rng.sample(words, 8) for _ in range(questions)]
    copies: Questions = [(f"Repeat this list.\n{', '.join(items)}", ", ".join(items)) for items in lists]
    tables: Questions = []
    for _ in range(questions):
        table = list(zip(rng.sample(words, 6), rng.sample(words, 6), strict=True))
        key, value = rng.choice(table)
        tables.append((f"{', '.join(f'{k}: {v}' for k, v in table)}\n\nWhat is {key}?", value))
    return {
        "bits_per_byte": {name: round(bits_per_byte(model, tokenizer, found), 4) for name, found in documents.items()},
        "bytes": {name: sum(len(document.encode()) for document in found) for name, found in documents.items()},
        "copy_exact": share_exact(model, tokenizer, copies),
        "look_up_exact": share_exact(model, tokenizer, tables),
        "induction": induction(model, tokenizer, [rng.sample(words, 20) for _ in range(questions)]),
        "questions": questions,
        "seed": seed,
    }


def read_documents(path: Path, most_bytes: int) -> list[str]:
    """Whole documents from the beginning of the file, as many as fit in `most_bytes`, but at least one."""
    found: list[str] = []
    size = 0
    for document in path.read_text(encoding="utf-8").split("\n\n\n"):
        size += len(document.encode())
        if found and size > most_bytes:
            break
        found.append(document)
    return found


@torch.no_grad()
def bits_per_byte(model: Any, tokenizer: Any, documents: Sequence[str]) -> float:
    """Negative log-likelihood in bits over all tokens, end mark included, divided by the UTF-8 bytes of the texts."""
    window = int(model.config.max_position_embeddings) - 1
    total = 0.0
    for document in documents:
        ids = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"] + [tokenizer.eos_token_id]
        for start in range(0, len(ids), window):
            piece = torch.tensor([[tokenizer.bos_token_id, *ids[start : start + window]]])
            logits = model(piece).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="sum"))
    return total / math.log(2) / sum(len(document.encode()) for document in documents)


@torch.no_grad()
def share_exact(model: Any, tokenizer: Any, questions: Questions, batch_size: int = 25) -> float:
    """Share of the questions whose greedy answer, ends stripped, equals the expected one."""
    right = 0
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
            for text, _ in batch
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        longest = max(len(tokenizer(answer)["input_ids"]) for _, answer in batch)
        answers = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=longest + 4,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        said = tokenizer.batch_decode(answers[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(text.strip() == answer for text, (_, answer) in zip(said, batch, strict=True))
    return right / len(questions)


@torch.no_grad()
def induction(model: Any, tokenizer: Any, sequences: Sequence[Sequence[str]]) -> dict[str, float]:
    """Top-1 accuracy of the next token within the first and the second copy of each sequence."""
    right = {"first_copy": 0, "second_copy": 0}
    count = 0
    for words in sequences:
        copy = tokenizer(" " + " ".join(words), add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[tokenizer.bos_token_id, *copy, *copy]])
        guesses = model(ids).logits[0, :-1].argmax(-1)
        hits = (guesses == ids[0, 1:]).tolist()
        # The first token of a copy cannot be known: neither copy is counted there.
        right["first_copy"] += sum(hits[1 : len(copy)])
        right["second_copy"] += sum(hits[len(copy) + 1 :])
        count += len(copy) - 1
    return {name: round(hits / count, 4) for name, hits in right.items()}


if __name__ == "__main__":
    main()
