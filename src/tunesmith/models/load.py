"""Loading a base model: a hub id, a local folder, or one that ships with the package (`embedded:NAME`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from tunesmith.errors import EngineError, RecipeError, VerificationError
from tunesmith.ops.product import use_fast_linears
from tunesmith.recipe.schema import Base

EMBEDDED = Path(__file__).parent / "embedded"


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base in memory, with what identifies it."""

    model: Any
    tokenizer: Any
    name: str
    revision: str | None
    weights_sha256: str
    folder: Path | None
    context: int
    parameters: int


def embedded_names() -> list[str]:
    """Names that `embedded:NAME` accepts."""
    return sorted(p.parent.name for p in EMBEDDED.glob("*/config.json"))


def base_folder(name: str) -> Path | None:
    """The folder a base name means, or None for a hub id. Raises `RecipeError` if there is no such thing."""
    if name.startswith("embedded:"):
        folder = EMBEDDED / name.removeprefix("embedded:")
        if folder.parent != EMBEDDED or not (folder / "config.json").is_file():
            known = ", ".join(f"embedded:{n}" for n in embedded_names())
            raise RecipeError(f"no embedded base {name!r}", where="base.model", expected=known)
        return folder
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise RecipeError(
                f"{folder} is not a model folder",
                where="base.model",
                expected="config.json, model.safetensors and a tokenizer",
            )
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise RecipeError(
            f"there is no folder {name!r}",
            where="base.model",
            expected="a hub id such as org/model, a local folder, or embedded:base",
        )
    return None


def load_base(spec: Base, device: torch.device | str | None = None) -> LoadedBase:
    """Load model and tokenizer in evaluation mode; remote code only if the recipe allows it.

    device: where to; by default the best there is.
    """
    folder = base_folder(spec.model)
    if folder is not None and folder.parent == EMBEDDED:
        _verify_embedded(folder)
    source = str(folder) if folder is not None else spec.model
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    tokenizer = _load_tokenizer(source, spec, folder)
    model = _load_model(source, spec, folder, device)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2048
    limit = getattr(tokenizer, "model_max_length", None)
    if limit and limit < context:
        context = int(limit)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > vocabulary:
        raise EngineError(
            f"the tokenizer has {len(tokenizer)} tokens, the model only {vocabulary}",
            where=spec.model,
            fix="use the tokenizer that belongs to this model",
        )
    return LoadedBase(
        model=model,
        tokenizer=tokenizer,
        name=spec.model,
        revision=spec.revision or getattr(model.config, "_commit_hash", None),
        weights_sha256=_weights_hash(folder, model),
        folder=folder,
        context=int(context),
        parameters=sum(p.numel() for p in model.parameters()),
    )


@torch.no_grad()
def load_full(model: Any, folder: Path) -> None:
    """Put the weights of a `transformers` folder into a model of the same architecture, in place."""
    source = _open_model(str(folder), Base(model=str(folder)), next(model.parameters()).dtype)
    target = dict(model.named_parameters())
    for name, parameter in source.named_parameters():
        target[name].copy_(parameter)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype a recipe's `base.dtype` means on this device."""
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def loaded_dtype(spec: Base) -> torch.dtype:
    """The dtype that `load_base` gives a base's weights on this machine's best device."""
    return pick_dtype(spec.dtype, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _load_tokenizer(source: str, spec: Base, folder: Path | None) -> Any:
    from transformers import AutoTokenizer

    if folder is not None and not any((folder / f).exists() for f in _TOKENIZER_FILES):
        raise EngineError(
            "the base folder has no tokenizer",
            where=str(folder),
            expected="tokenizer.json (or another tokenizer file) beside config.json",
            fix="copy the tokenizer files of this model into the folder",
        )
    try:
        return AutoTokenizer.from_pretrained(source, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, StrictDataclassError) as error:
        raise EngineError(f"the tokenizer could not be loaded: {_first(error)}", where=source) from error


def _load_model(source: str, spec: Base, folder: Path | None, device: torch.device) -> Any:
    from safetensors import SafetensorError

    try:
        model = _open_model(source, spec, pick_dtype(spec.dtype, device))
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        where = source if folder is not None else f"{source} (hub)"
        raise EngineError(
            f"the model could not be loaded: {_first(error)}",
            where=where,
            expected="a causal language model with safetensors weights",
            fix="check the name, the network, or give a local folder",
        ) from error
    model = model.to(device).eval()
    use_fast_linears(model)
    return model


def _open_model(source: str, spec: Base, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # weights are read in an instant, or downloaded with a bar of the hub's own
    return AutoModelForCausalLM.from_pretrained(
        source,
        revision=spec.revision,
        trust_remote_code=spec.trust_remote_code,
        dtype=dtype,
        use_safetensors=True,
    )


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _verify_embedded(folder: Path) -> None:
    expected = json.loads((folder / "sha256.json").read_text())
    for name, digest in expected.items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise VerificationError(
                f"{name} of the embedded base is damaged", where=str(folder), fix="install the package again"
            )


def _weights_hash(folder: Path | None, model: Any) -> str:
    """SHA-256 over the weight files, or over the tensors where the files are not ours to find (hub cache)."""
    if folder is not None and (files := sorted(folder.glob("*.safetensors"))):
        return files_sha256(files)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def files_sha256(files: Iterable[Path]) -> str:
    """SHA-256 over the bytes of files, one after the other: how the weights of a base are named everywhere."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
