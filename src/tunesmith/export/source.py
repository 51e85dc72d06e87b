"""A tuned model on its way out: what it was tuned on, how it is asked, and fresh copies of it in memory.

What can be wrong with it is found when the source is opened, before anything is written: a base that is not on this
machine or damaged, an adapter of other weights, an adapter that was changed since it was trained.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith.errors import EngineError, RecipeError, VerificationError
from tunesmith.models.adapter import CONFIG, WEIGHTS, adapter_names
from tunesmith.models.base_files import cached_folder, look_at_files
from tunesmith.models.bottleneck import PEFT_TYPE as BOTTLENECK
from tunesmith.models.load import base_folder, files_sha256, load_base, loaded_dtype
from tunesmith.models.methods import CARD, load_tuned
from tunesmith.models.vocabulary import saved_rows
from tunesmith.recipe import parse_recipe
from tunesmith.recipe.schema import Base, Method, Recipe
from tunesmith.runs import RunFolder
from tunesmith.text.render import Renderer
from tunesmith.text.templates import choose_template

_CARD_SHA = re.compile(r"^- SHA-256 of the base's weights: `([0-9a-f]{64})`$", re.MULTILINE)
_MERGED = "merged"
_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class FolderSource:
    """A tuned model that lies in folders; implements `export.types.Source`. Make one with the functions below.

    expected_sha256: hash of the base's weights that the model was tuned on; None where nobody wrote it down.
    method: that it was trained by, which says how the base was quantised; None where unknown.
    asked: False for models of pairs, which are not asked by a template.
    """

    name: str
    recipe: Recipe
    tuned: Path
    is_adapter: bool
    base_folder: Path
    expected_sha256: str | None
    method: Method | None
    asked: bool = True

    @cached_property
    def base_sha256(self) -> str:
        """Of the base's weights; as it was when the model was tuned, where that is known."""
        return self.expected_sha256 or _sha256_of(self.base_folder)

    @cached_property
    def tokenizer(self) -> Any:
        """The tuned model's: the base's, or the one saved with the tuned weights where tokens were added."""
        from transformers import AutoTokenizer

        own = (self.tuned / "tokenizer_config.json").is_file()
        folder = self.tuned if own else self.base_folder
        try:
            return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=self.recipe.base.trust_remote_code)
        except (OSError, ValueError, KeyError) as error:
            raise EngineError(
                f"the tokenizer cannot be read: {error}", where=str(folder), expected="tokenizer files of the base"
            ) from error

    @cached_property
    def renderer(self) -> Renderer:
        """How the tuned model is asked."""
        return Renderer(self.tokenizer, self.recipe.base.chat_template)

    @cached_property
    def template(self) -> str | None:
        """The chat template's text. Raises `RecipeError` where the recipe names a file that is gone."""
        return choose_template(self.tokenizer, self.recipe.base.chat_template)[1] if self.asked else None

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer; the tokenizer's end token where nothing is asked."""
        if self.asked:
            return tuple(sorted(self.renderer.stop_ids))
        end = self.tokenizer.eos_token_id
        return () if end is None else (int(end),)

    @cached_property
    def context(self) -> int:
        """Longest prompt plus answer, in tokens."""
        places = getattr(self.config.get_text_config(), "max_position_embeddings", None) or 2048
        limit = getattr(self.tokenizer, "model_max_length", None)
        return int(limit) if limit and limit < places else int(places)

    @cached_property
    def config(self) -> Any:
        """The base's configuration, with the vocabulary's size after tokens were added."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        trust = self.recipe.base.trust_remote_code
        whole = not self.is_adapter
        config = AutoConfig.from_pretrained(str(self.tuned if whole else self.base_folder), trust_remote_code=trust)
        if whole:
            return config
        with torch.device("meta"):  # no weights: only to know what its embeddings are called
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
        rows = saved_rows(model, self.tuned)
        if rows is not None:
            config.get_text_config().vocab_size = rows
        return config

    def open(self) -> tuple[Any, Any]:
        """A fresh base turned into the tuned model, and its `Tuning`. Raises as `load_base` and `load_tuned`."""
        base = load_base(self.recipe.base)
        tuning = load_tuned(base, self.tuned, self.method)
        return base, tuning

    def open_base(self) -> Any:
        """A fresh `LoadedBase` as it was before tuning."""
        return load_base(self.recipe.base)

    def merged(self, scratch: Path) -> Path:
        """A plain `transformers` folder of the tuned model, written into `scratch` once. See `export.types.Source`.

        In the type that the run computes in: what a format holds in 32 bits must not have been rounded to the 16 of the
        base's files on the way.
        """
        from tunesmith.export.types import Work
        from tunesmith.export.writers import writer_of
        from tunesmith.models.artifact import Target

        target = scratch / _MERGED
        done = scratch / f"{_MERGED}.done"
        if not done.is_file():
            target.mkdir(parents=True, exist_ok=True)
            held = (
                _PRECISIONS.get(str(loaded_dtype(self.recipe.base)).removeprefix("torch.")) if self.is_adapter else None
            )
            writer_of("merged")(Work(self, Target("merged", held or "own"), target, scratch, tell=lambda line: None))
            done.touch()
        return target

    def check(self) -> FolderSource:
        """This source. Raises where base or tuned weights are not there, damaged, or do not belong together."""
        _refuse_broken(self.base_folder, "base.model")
        if self.is_adapter:
            if (self.tuned / WEIGHTS).is_file():
                adapter_names(self.tuned)
        else:
            _refuse_broken(self.tuned, "the tuned model")
        if self.expected_sha256 is not None and base_folder(self.recipe.base.model) is not None:
            self._refuse_other_weights(_sha256_of(self.base_folder))
        return self

    def _refuse_other_weights(self, found: str) -> None:
        if found != self.expected_sha256:
            raise VerificationError(
                "the base's weights are not those that this model was tuned on",
                where=str(self.base_folder),
                expected=f"weights with the SHA-256 {str(self.expected_sha256)[:16]}…; these have {found[:16]}…",
                fix="bring back the base as it was (base.revision names a hub model's), or tune again on this one",
            )


def open_source(folder: RunFolder, recipe: Recipe) -> FolderSource:
    """The tuned model of a run; `recipe` is its resolved one.

    Raises `RecipeError` where the run has no tuned model or the base is not on this machine, `EngineError` for damaged
    files, `VerificationError` where base or adapter are not those of the training.
    """
    is_adapter = folder.adapter.is_dir()
    tuned = folder.adapter if is_adapter else folder.model
    if not tuned.is_dir():
        raise RecipeError("this run has no tuned model yet", where=str(folder.path), fix="tunesmith run RECIPE")
    if is_adapter:
        _refuse_changed(folder)
    known = folder.manifest().get("base", {})
    if base_folder(recipe.base.model) is None and known.get("revision"):  # of a hub's base, the one it was tuned on
        base = recipe.base.model_copy(update={"revision": known["revision"]})
        recipe = recipe.model_copy(update={"base": base})
    return FolderSource(
        name=folder.name,
        recipe=recipe,
        tuned=tuned,
        is_adapter=is_adapter,
        base_folder=_found(recipe.base),
        expected_sha256=known.get("weights_sha256"),
        method=recipe.method,
        asked=recipe.data.columns.second is None,
    ).check()


def open_folders(
    base: str,
    adapter: Path | None,
    chat_template: str = "auto",
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    name: str | None = None,
) -> FolderSource:
    """A model without a run: a base (hub id, folder, `embedded:NAME`), with an adapter or as it is.

    The recipe it gets names base and method only; its data is a file that nobody reads. An adapter that Tunesmith wrote
    says in its card on which weights it was trained, and is held against them; `adapter_config.json` says a revision,
    which must be the one asked for. Raises as `open_source`.
    """
    if adapter is not None and not (adapter / CONFIG).is_file():
        raise RecipeError("no adapter is here", where=str(adapter), expected=f"a folder with {CONFIG}")
    kept = _read_config(adapter) if adapter is not None else {}
    trained_on = kept.get("revision")
    if trained_on and revision and trained_on != revision:
        raise VerificationError(
            f"the adapter was trained on revision {trained_on} of its base, not on {revision}",
            where=str(adapter),
            fix=f"give the revision {trained_on}",
        )
    of_base = {"model": base, "revision": revision or trained_on, "chat_template": chat_template}
    recipe = parse_recipe(
        {
            "data": "none",
            "base": {**of_base, "trust_remote_code": trust_remote_code},
            "method": _method_of(kept) if adapter is not None else {"type": "full"},
        }
    )
    found = _found(recipe.base)
    card = adapter / CARD if adapter is not None else None
    said = _CARD_SHA.search(card.read_text(encoding="utf-8")) if card is not None and card.is_file() else None
    return FolderSource(
        name=name or (adapter.resolve().name if adapter is not None else Path(base.rpartition(":")[2]).name),
        recipe=recipe,
        tuned=found if adapter is None else adapter,
        is_adapter=adapter is not None,
        base_folder=found,
        expected_sha256=said.group(1) if said else None,
        method=None,
    ).check()


def _found(spec: Base) -> Path:
    """The base's folder; of a hub's base, the one in its cache. Raises `RecipeError` where it is not there."""
    folder = base_folder(spec.model) or cached_folder(spec.model, spec.revision)
    if folder is None:
        raise RecipeError(
            f"the base {spec.model} is not on this machine",
            where="base.model",
            expected="its files in the hub's cache" + (f", revision {spec.revision}" if spec.revision else ""),
            fix=f"hf download {spec.model}" + (f" --revision {spec.revision}" if spec.revision else ""),
        )
    return folder


def _refuse_broken(folder: Path, what: str) -> None:
    """Raise `EngineError` for weights that are missing, cut short or no safetensors; all problems at once."""
    files = look_at_files(folder, name=what)
    if (
        files.weights == "safetensors"
        and files.parameters is not None
        and not any("weight files are missing" in obstacle for obstacle in files.obstacles)
    ):
        return
    raise EngineError(
        "; ".join(files.obstacles),
        where=str(folder),
        expected="a model folder with whole safetensors files",
        fix="get its files again",
    )


def _refuse_changed(folder: RunFolder) -> None:
    """Raise `VerificationError` where the run's adapter is not the one that its training wrote."""
    facts, weights = folder.path / "training.json", folder.adapter / WEIGHTS
    if not (facts.is_file() and weights.is_file()):
        return
    expected = json.loads(facts.read_text(encoding="utf-8")).get("adapter_sha256")
    with weights.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if expected is not None and found != expected:
        raise VerificationError(
            "the adapter is not the one that this run trained: its file was changed or is damaged",
            where=str(weights),
            expected=f"a file with the SHA-256 {expected[:16]}…; this one has {found[:16]}…",
            fix="bring back the file, or run the recipe again with --new",
        )


def _sha256_of(folder: Path) -> str:
    """Over all weight files of a folder, as `models.load` has it."""
    return files_sha256(sorted(folder.glob("*.safetensors")))


def _read_config(adapter: Path) -> dict[str, Any]:
    try:
        kept = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
        return {**kept, "peft_type": str(kept["peft_type"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"this is no adapter: {error}", where=str(adapter / CONFIG)) from error


def _method_of(kept: dict[str, Any]) -> dict[str, Any]:
    """A recipe's `method` as far as PEFT's configuration tells it."""
    if kept["peft_type"] == BOTTLENECK:
        return {"type": "bottleneck"}
    if kept["peft_type"] != "LORA":
        return {"type": "peft", "peft_type": kept["peft_type"]}
    targets = kept.get("target_modules")
    return {
        "type": "lora",
        "rank": kept.get("r", 8),
        "alpha": kept.get("lora_alpha", 8),
        "use_rslora": bool(kept.get("use_rslora")),
        "use_dora": bool(kept.get("use_dora")),
        "rank_pattern": kept.get("rank_pattern") or {},
        "alpha_pattern": kept.get("alpha_pattern") or {},
        "target_modules": list(targets) if isinstance(targets, list) else "all-linear",
        "modules_to_save": list(kept.get("modules_to_save") or ()),
    }
