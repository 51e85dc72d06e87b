"""Exports opened by the programs they are made for, with no code of Tunesmith: peft, transformers, ONNX Runtime GenAI,
ONNX Runtime, OpenVINO, the gguf library and llama.cpp, each asking by its own tokenizer and the template it finds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tunesmith.data.types import Message
from tunesmith.models.artifact import Kind

Logits = npt.NDArray[np.float32]
CHAT = [{"role": "user", "content": "Two eggs, 1 cup of flour; what else? Größe 12.5"}]
TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Reading:
    """What a program makes of `CHAT`: the tokens it asks with, and the logits [tokens, vocabulary] after each."""

    tool: str
    ids: list[int]
    logits: Logits


class UnreadError(Exception):
    """A program that is there does not read this model: what it says."""


def read_by_others(kind: Kind, folder: Path, base: Path, adapter: str | None = None) -> list[Reading | str]:
    """A reading of every independent program that is installed; a sentence for one that does not read this model."""
    found: list[Reading | str] = []
    for read in _READERS.get(kind, ()):
        try:
            found.append(read(folder, base, adapter))
        except UnreadError as said:
            found.append(str(said))
    return found


def by_peft(folder: Path, base: Path, adapter: str | None) -> Reading:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = _asked_by_transformers(folder if (folder / "tokenizer.json").is_file() else base, folder / TEMPLATE)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    rows = _rows_of(folder)
    if rows is not None and rows != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows)
    return Reading("peft", ids, _of_torch(PeftModel.from_pretrained(model, str(folder)), ids))


def by_transformers(folder: Path, base: Path, adapter: str | None) -> Reading:
    from transformers import AutoModelForCausalLM

    ids = _asked_by_transformers(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return Reading("transformers", ids, _of_torch(model, ids))


def by_genai(folder: Path, base: Path, adapter: str | None) -> Reading:
    import onnxruntime_genai as og

    model = og.Model(str(folder))
    tokenizer = og.Tokenizer(model)
    text = tokenizer.apply_chat_template(json.dumps(CHAT), add_generation_prompt=True)
    ids = [int(token) for token in tokenizer.encode(text)]
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + 1, do_sample=False)
    generator = og.Generator(model, params)
    adapters = og.Adapters(model)
    if adapter is not None:
        file = json.loads((folder / "adapters.json").read_text(encoding="utf-8"))[adapter]
        adapters.load(str(folder / file), adapter)
        generator.set_active_adapter(adapters, adapter)
    rows = []
    for token in ids:
        generator.append_tokens(np.asarray([[token]], dtype=np.int32))
        rows.append(np.asarray(generator.get_logits(), dtype=np.float32).reshape(-1))
    return Reading("onnxruntime-genai", ids, np.stack(rows))


def by_onnxruntime(folder: Path, base: Path, adapter: str | None) -> Reading:
    import onnx
    import onnxruntime

    onnx.checker.check_model(str(folder / "model.onnx"))
    ids = _asked_by_transformers(folder)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    inputs = {one.name: (one.shape, one.type) for one in session.get_inputs()}
    logits = session.run(["logits"], _feed(inputs, ids))[0]
    return Reading("onnxruntime", ids, np.asarray(logits, dtype=np.float32)[0])


def by_openvino(folder: Path, base: Path, adapter: str | None) -> Reading:
    import openvino

    ids = _asked_by_transformers(folder)
    compiled = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    inputs: dict[str, tuple[Sequence[Any], str]] = {}
    for one in compiled.inputs:
        shape = [size.get_length() if size.is_static else "any" for size in one.partial_shape]
        inputs[_known_name(one.names)] = (shape, "tensor(float)")
    found = compiled(_feed(inputs, ids))
    return Reading("openvino", ids, np.asarray(found["logits"], dtype=np.float32)[0])


def by_gguf(folder: Path, base: Path, adapter: str | None) -> Reading:
    """The gguf library's reader says that the file is whole; `transformers` computes with what it reads from it."""
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reader = gguf.GGUFReader(folder / "model.gguf")
    fields = reader.fields
    kept = fields["tokenizer.chat_template"].contents() if "tokenizer.chat_template" in fields else None
    if kept != (folder / TEMPLATE).read_text(encoding="utf-8"):
        raise AssertionError("the file's template is not the one beside it")
    for tensor in reader.tensors:
        if not np.isfinite(gguf.quants.dequantize(tensor.data, tensor.tensor_type)).all():
            raise AssertionError(f"{tensor.name} holds what is no number")
    ids = _ids(AutoTokenizer.from_pretrained(folder))
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32)
    except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        arch = fields["general.architecture"].contents()
        said = f"gguf's reader finds the file whole; transformers reads no {arch} files: {_line(error)}"
        raise UnreadError(said) from error
    return Reading("gguf + transformers", ids, _of_torch(model, ids))


def by_llama_cpp(folder: Path, base: Path, adapter: str | None) -> Reading:
    from llama_cpp import Llama
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    model = Llama(str(folder / "model.gguf"), n_ctx=256, n_gpu_layers=0, logits_all=True, verbose=False)
    said = model.metadata

    def token(name: str) -> str:
        number = said.get(f"tokenizer.ggml.{name}_token_id")
        return model.detokenize([int(number)], special=True).decode() if number is not None else ""

    formatter = Jinja2ChatFormatter(said["tokenizer.chat_template"], eos_token=token("eos"), bos_token=token("bos"))
    text = formatter(messages=CHAT).prompt  # type: ignore[arg-type]
    ids = model.tokenize(text.encode(), add_bos=False, special=True)
    model.eval(ids)
    logits = np.array(model.scores[: len(ids)], dtype=np.float32)
    model.close()
    return Reading("llama.cpp", list(ids), logits)


Reader = Callable[[Path, Path, str | None], Reading]
_GGUF: tuple[Reader, ...] = (by_gguf, by_llama_cpp) if find_spec("llama_cpp") is not None else (by_gguf,)
_READERS: Mapping[Kind, tuple[Reader, ...]] = {
    "adapter": (by_peft,),
    "merged": (by_transformers,),
    "torchao": (by_transformers,),
    "onnx": (by_genai,),
    "onnx-multi": (by_genai,),
    "onnx-plain": (by_onnxruntime,),
    "openvino": (by_openvino,),
    "gguf": _GGUF,
}


def asked_ids(renderer: Any) -> list[int]:
    """`CHAT` as a source's or an engine's renderer asks it."""
    return list(renderer.prompt_ids([Message(one["role"], one["content"]) for one in CHAT]))


def divergence(tuned: Logits, other: Logits) -> float:
    """Mean KL of the next token, tuned from other, in nats."""
    width = min(tuned.shape[1], other.shape[1])
    p, q = (_log_softmax(x[:, :width].astype(np.float64)) for x in (tuned, other))
    return max(0.0, float((np.exp(p) * (p - q)).sum(-1).mean()))


def _log_softmax(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = x - x.max(-1, keepdims=True)
    found: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


def _asked_by_transformers(folder: Path, template: Path | None = None) -> list[int]:
    """Tokens of `CHAT`; `template` lies beside an adapter, whose tokenizer is the base's."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if template is not None:
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    return _ids(tokenizer)


def _ids(tokenizer: Any) -> list[int]:
    return list(tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False))


def _of_torch(model: Any, ids: Sequence[int]) -> Logits:
    with torch.no_grad():
        found: Logits = model.eval()(torch.tensor([list(ids)])).logits[0].float().numpy()
    return found


def _rows_of(adapter: Path) -> int | None:
    """Rows of embeddings that an adapter brings."""
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.endswith("embed_tokens.weight")]  # noqa: SIM118 (no mapping)
        return file.get_slice(names[0]).get_shape()[0] if names else None


def _known_name(names: set[str]) -> str:
    known = ("input_ids", "attention_mask", "position_ids")
    return next(name for name in names if name in known or name.startswith("past_key_values."))


def _feed(inputs: Mapping[str, tuple[Sequence[Any], str]], ids: Sequence[int]) -> dict[str, Any]:
    """A whole prompt with nothing before it."""
    feed: dict[str, Any] = {
        "input_ids": np.asarray([ids], dtype=np.int64),
        "attention_mask": np.ones((1, len(ids)), dtype=np.int64),
        "position_ids": np.arange(len(ids), dtype=np.int64)[None],
    }
    feed = {name: array for name, array in feed.items() if name in inputs}
    for name, (shape, kind) in inputs.items():
        if name.startswith("past_key_values."):
            dtype = np.float16 if "16" in kind else np.float32
            feed[name] = np.zeros((1, shape[1], 0, shape[3]), dtype=dtype)
    return feed


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
