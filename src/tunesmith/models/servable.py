"""Whether what a method will save can be served, told before anything is trained; and whether a saved adapter can.

Ways to serve an adapter beside its base that are known here: `peft` itself, vLLM (which reads PEFT's folder), llama.cpp
(of a GGUF adapter), and for a saved one ONNX Runtime GenAI (of a graph that adapters are given to). A model tuned in
full, or an adapter merged into its base, is an ordinary model folder and needs none of this.

The rules are those of vLLM's `lora/peft_helper.py` and `config/lora.py`, and of what a GGUF adapter can hold (one alpha
for all; `export.gguf` writes other scales into B), as of 2026.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from tunesmith.errors import RecipeError
from tunesmith.models.adapter import unsupported
from tunesmith.models.bottleneck import PEFT_TYPE as BOTTLENECK
from tunesmith.models.lora_init import FROM_WEIGHTS
from tunesmith.models.lora_targets import means
from tunesmith.recipe.schema import Method

Server = Literal["peft", "vllm", "gguf", "onnx"]

SERVER_NAMES: Mapping[Server, str] = {
    "peft": "peft",
    "vllm": "vLLM",
    "gguf": "llama.cpp (GGUF adapter)",
    "onnx": "ONNX Runtime GenAI (graph with adapters)",
}
"""The servers as people know them."""

VLLM_MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM's `--max-lora-rank` may have; an adapter's rank may be anything up to it."""

_WITHOUT_VLLM_LORA = ("gpt2",)
"""Model types that vLLM runs, but without adapters."""

_HEAD_NAMES = ("lm_head", "embed_out", "output")
_MERGE = "or leave method.must_serve out, and merge the adapter into the base when it is trained"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a server cannot load an adapter: the setting, the reason in words, and what to change."""

    where: str
    reason: str
    fix: str


@dataclass(frozen=True, slots=True)
class Servability:
    """Whether a server can load what a method saves, with the obstacles, and what it must be told if it can."""

    server: Server
    obstacles: tuple[Obstacle, ...]
    note: str = ""

    @property
    def ok(self) -> bool:
        return not self.obstacles

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(obstacle.reason for obstacle in self.obstacles)


def servable(method: Method, config: Any, added_tokens: bool = False) -> tuple[Servability, ...]:
    """What each known server makes of `method` on a base with this `transformers` configuration.

    `added_tokens`: whether the vocabulary grows, so that embeddings and head are saved with the adapter.
    """
    return (
        Servability("peft", tuple(_peft(method)), "grow the base's embeddings first" if added_tokens else ""),
        Servability("vllm", tuple(_vllm(method, config, added_tokens)), _vllm_note(method)),
        Servability("gguf", tuple(_gguf(method, config, added_tokens)), _gguf_note(method)),
    )


def servable_file(config: Mapping[str, Any], names: Collection[str], base: Any) -> tuple[Servability, ...]:
    """What each known server makes of an adapter that is saved already.

    config: its `adapter_config.json`. names: of its tensors. base: the base's `transformers` configuration.
    """
    method, embeddings = _method_of(config, names)
    doubled = config.get("init_lora_weights") in FROM_WEIGHTS  # as plain `peft` saves it
    more = list(_only_in_files(config, names))
    found: dict[Server, list[Obstacle]] = {
        "peft": [*_peft(method)],
        "vllm": [*_vllm(method, base, embeddings), *more],
        "gguf": [*_gguf(method, base, embeddings), *more],
        "onnx": [*_onnx(method, base, embeddings), *more],
    }
    notes: dict[Server, str] = {
        "peft": "grow the base's embeddings first, to as many rows as the adapter brings" if embeddings else "",
        "vllm": _vllm_note(method),
        "gguf": _gguf_note(method),
        "onnx": "`tunesmith adapters pack --to onnx` makes the graph and the file",
    }
    if doubled:
        notes["peft"] = "with this start, peft decomposes the base's weights again at each loading"
    return tuple(
        Servability(
            server, tuple(replace(o, where=_in_file(o.where), fix=_saved_fix(o)) for o in of_server), notes[server]
        )
        for server, of_server in found.items()
    )


def require(method: Method, config: Any, added_tokens: bool = False) -> None:
    """Raise `RecipeError` where a server in `method.must_serve` could not load the result, with what to change."""
    by_server = {verdict.server: verdict for verdict in servable(method, config, added_tokens)}
    for server in method.must_serve:
        if obstacles := by_server[server].obstacles:
            name = "vLLM" if server == "vllm" else "llama.cpp (GGUF)"
            raise RecipeError(
                f"{name} could not load the adapter: " + "; ".join(o.reason for o in obstacles),
                where=", ".join(dict.fromkeys(o.where for o in obstacles)),
                expected=f"an adapter that {name} can load, because method.must_serve names {server}",
                fix="; ".join([*dict.fromkeys(o.fix for o in obstacles), _MERGE]),
            )


def served_rank(method: Method) -> int:
    """The rank in the adapter's file: twice the trained one where the start was taken out of the weights."""
    return 2 * method.rank if method.init in FROM_WEIGHTS else method.rank


def _peft(method: Method) -> Iterator[Obstacle]:
    if method.type == "bottleneck":
        yield Obstacle(
            "method.type", "the peft library has no bottleneck adapters of this kind", "use method.type: lora"
        )


@dataclass(frozen=True, slots=True)
class _Words:
    """What a server says of things it cannot load; `full`: of modules trained in full, with their names."""

    name: str
    dora: str
    full: str
    embeddings: str
    no_tokens: str
    head: str


def _refused(method: Method, config: Any, added_tokens: bool, said: _Words) -> Iterator[Obstacle]:
    """What neither vLLM nor llama.cpp can load."""
    if method.type == "bottleneck":
        yield Obstacle("method.type", f"{said.name} has no bottleneck adapters", "use method.type: lora")
    if method.type == "peft" and (method.peft_type or "").upper() != "LORA":
        yield Obstacle(
            "method.peft_type", f"{said.name} loads LoRA adapters only, not {method.peft_type}", "use method.type: lora"
        )
    if method.type != "lora":
        return
    if method.use_dora:
        yield Obstacle("method.use_dora", said.dora, "set method.use_dora: false")
    if method.modules_to_save:
        named = ", ".join(method.modules_to_save)
        yield Obstacle("method.modules_to_save", said.full.format(named), "leave method.modules_to_save empty")
    if added_tokens:
        yield Obstacle("base.add_tokens", said.embeddings, said.no_tokens)
    if _targets_head(method) and _tied(config):
        yield Obstacle("method.target_modules", said.head, "leave the head out of method.target_modules")


_VLLM = _Words(
    name="vLLM",
    dora="vLLM has no DoRA",
    full="vLLM refuses adapters with fully trained modules ({})",
    embeddings="vLLM refuses adapters that bring embeddings, which new tokens need",
    no_tokens="add no tokens, for example by a chat template made of known ones (base.chat_template: plain)",
    head="the base's head is its embeddings, and vLLM cannot adapt one without the other",
)
_GGUF = _Words(
    name="llama.cpp",
    dora="a GGUF adapter has no DoRA",
    full="a GGUF adapter holds low-rank updates only, not {} in full",
    embeddings="a GGUF adapter cannot bring new embeddings",
    no_tokens="add no tokens",
    head="the base's head is its embeddings, for which a GGUF model has one tensor that cannot be adapted",
)


_ONNX = _Words(
    name="a graph with adapters as inputs",
    dora="a graph with adapters as inputs has no DoRA",
    full="a graph with adapters as inputs takes low-rank updates only, not {} in full",
    embeddings="a graph with adapters as inputs has one vocabulary",
    no_tokens="add no tokens",
    head="the graph's head is its embeddings, which take no adapter",
)


def _onnx(method: Method, config: Any, added_tokens: bool) -> Iterator[Obstacle]:
    yield from _refused(method, config, added_tokens, _ONNX)
    if method.type == "lora" and _targets_head(method) and not _tied(config):
        yield Obstacle("method.target_modules", "a graph with adapters as inputs has none at the head", "leave it out")


def _vllm(method: Method, config: Any, added_tokens: bool) -> Iterator[Obstacle]:
    if method.type == "full":
        return
    yield from _refused(method, config, added_tokens, _VLLM)
    if method.type != "lora":
        return
    if config.model_type in _WITHOUT_VLLM_LORA:
        yield Obstacle("base.model", f"vLLM runs {config.model_type} without adapters", "use another base")
    if served_rank(method) > VLLM_MAX_RANKS[-1]:
        twice = " (twice the trained one, because of method.init)" if method.init in FROM_WEIGHTS else ""
        yield Obstacle(
            "method.rank",
            f"rank {served_rank(method)}{twice} is above vLLM's largest, {VLLM_MAX_RANKS[-1]}",
            f"use a rank of at most {VLLM_MAX_RANKS[-1] * method.rank // served_rank(method)}",
        )
    for key in ("rank_pattern", "alpha_pattern"):
        if getattr(method, key):
            yield Obstacle(
                f"method.{key}",
                f"vLLM ignores {key} and would scale those layers wrongly",
                f"leave method.{key} out",
            )


def _gguf(method: Method, config: Any, added_tokens: bool) -> Iterator[Obstacle]:
    if method.type != "full":
        yield from _refused(method, config, added_tokens, _GGUF)


def _vllm_note(method: Method) -> str:
    if method.type != "lora":
        return ""
    limit = next((rank for rank in VLLM_MAX_RANKS if rank >= served_rank(method)), None)
    return "" if limit is None else f"start vLLM with --enable-lora --max-lora-rank {limit}"


def _gguf_note(method: Method) -> str:
    if method.type != "lora":
        return ""
    note = "`tunesmith adapters convert --to gguf` makes the file"
    if method.use_rslora or method.alpha_pattern:
        note += "; llama.cpp's own script would not scale it as it was trained"
    return note


def _targets_head(method: Method) -> bool:
    targets = method.target_modules
    return not isinstance(targets, str) and any(name.rpartition(".")[2] in _HEAD_NAMES for name in targets)


def _tied(config: Any) -> bool:
    return bool(getattr(config, "tie_word_embeddings", False))


def _method_of(config: Mapping[str, Any], names: Collection[str]) -> tuple[Method, bool]:
    """The method that would have saved such a file, and whether embeddings lie in it that nobody trained."""
    kind = str(config["peft_type"])
    if kind == BOTTLENECK:
        return Method(type="bottleneck"), False
    if kind != "LORA":
        return Method(type="peft", peft_type=kind), False
    saved = list(config.get("modules_to_save") or ())
    whole = {name.rpartition(".")[0] for name in names if ".lora_" not in name}
    adapted = sorted(
        {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in names if ".lora_" in name}
    )
    method = Method(
        rank=max([int(config["r"]), *(config.get("rank_pattern") or {}).values()]),
        alpha=float(config["lora_alpha"]),
        use_rslora=bool(config.get("use_rslora")),
        use_dora=bool(config.get("use_dora")),
        rank_pattern=config.get("rank_pattern") or {},
        alpha_pattern=config.get("alpha_pattern") or {},
        target_modules=adapted,
        modules_to_save=saved,
    )
    return method, any(not any(means(name, path) for name in saved) for path in whole)


def _only_in_files(config: Mapping[str, Any], names: Collection[str]) -> Iterator[Obstacle]:
    """What our own methods never save."""
    if config["peft_type"] != "LORA":
        return
    for problem in unsupported(dict(config), names):
        yield Obstacle(problem.partition(":")[0], f"the adapter has {problem}", "")
    if (start := config.get("init_lora_weights")) in FROM_WEIGHTS:
        reason = f"it began by {start} and was saved as it is: it belongs to a base from which its start was taken"
        yield Obstacle("init_lora_weights", reason, "tunesmith adapters convert --to lora makes it plain, exactly")


def _in_file(where: str) -> str:
    """The key of `adapter_config.json` that a setting of the recipe becomes."""
    keys = {"base.add_tokens": "embeddings", "base.model": "base_model_name_or_path", "method.rank": "r"}
    return keys.get(where, where.removeprefix("method."))


def _saved_fix(obstacle: Obstacle) -> str:
    """What to do about an adapter that is trained already."""
    exact = ("method.use_rslora", "method.rank_pattern", "method.alpha_pattern")
    if obstacle.where in exact:
        return "tunesmith adapters convert --to lora gives it one rank and a plain alpha, exactly"
    if obstacle.where == "method.rank":
        cut = f"tunesmith adapters convert --to lora --rank {VLLM_MAX_RANKS[-1]}"
        return f"merge it (tunesmith export --to merged), or cut it, with an error that is said: {cut}"
    if obstacle.where == "method.type":
        return "serve it with Tunesmith: it can neither be merged nor converted"
    if obstacle.where in ("method.use_dora", "method.peft_type"):
        return (
            "merge it (tunesmith export --to merged), or approximate it: tunesmith adapters convert --to lora --rank N"
        )
    return obstacle.fix if obstacle.where == "init_lora_weights" else "merge it: tunesmith export --to merged"
