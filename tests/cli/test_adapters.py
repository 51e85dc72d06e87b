"""`tunesmith adapters`: check, convert, merge and pack from the command line, of runs and of folders."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.export.made import made_run, recipe_of
from tests.models.peft_side import answers, difference, load_plain, plain_adapter
from tests.tiny import build, byte_tokenizer, save_base
from tunesmith.cli.main import invoke

pytestmark = pytest.mark.filterwarnings("ignore")

METHODS: dict[str, dict[str, Any]] = {
    "a": {},
    "b": {"use_rslora": True, "alpha": 3.0},
    "dora": {"use_dora": True},
    "head": {"modules_to_save": ["lm_head"]},
    "full": {"type": "full"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Two bases in `bases/`, runs of the first by their method's name, and one of the second, `other`."""
    folder = tmp_path_factory.mktemp("adapters")
    base = save_base(folder / "bases" / "llama", "llama")
    for number, (name, method) in enumerate(METHODS.items()):
        made_run(folder / name, recipe_of(base, method), seed=number)
    made_run(folder / "other", recipe_of(save_base(folder / "bases" / "other", "llama", seed=3), {}))
    return folder


def told(capsys: Any, *arguments: Any, code: int = 0) -> dict[str, Any]:
    """What a command prints with --json; its exit code is held against `code`."""
    assert invoke(["adapters", *map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_check_says_what_it_is_and_who_takes_it(place, capsys):
    found = told(capsys, "check", place / "a")
    assert (found["type"], found["rank"], found["alpha"], found["modules"]) == ("LORA", 4, 8.0, 14)
    assert found["plain_lora"]["how"] == "plain" and all(one["ok"] for one in found["servers"].values())
    assert found["base_sha256"] and found["parameters"] > 1000
    of = {name: told(capsys, "check", place / name) for name in ("b", "dora", "head")}
    assert {name: one["plain_lora"]["how"] for name, one in of.items()} == {
        "b": "exact",
        "dora": "nearest",
        "head": "no",
    }
    ok = {name: {server: one["ok"] for server, one in of[name]["servers"].items()} for name in of}
    assert ok["b"] == {"peft": True, "vllm": True, "gguf": True, "onnx": True}
    assert ok["dora"] == ok["head"] == {"peft": True, "vllm": False, "gguf": False, "onnx": False}
    assert of["head"]["trained_in_full"] == ["lm_head"]


def test_check_in_words_and_for_one_server(place, capsys):
    assert invoke(["adapters", "check", str(place / "dora")]) == 0
    text = capsys.readouterr().out
    assert "dora: DoRA, rank 4" in text and "✓ peft" in text and "✗ vLLM: vLLM has no DoRA" in text and "to do:" in text
    assert invoke(["adapters", "check", str(place / "a"), "--for", "vllm"]) == 0
    assert invoke(["adapters", "check", str(place / "dora"), "--for", "vllm"]) == 6
    assert "vllm cannot take this adapter: vLLM has no DoRA" in capsys.readouterr().err
    assert invoke(["adapters", "check", str(place / "full")]) == 2
    assert "tuned in full" in capsys.readouterr().err
    assert invoke(["adapters", "check", str(place / "nothing")]) == 2


def test_an_adapter_of_plain_peft_is_taken_by_its_folder(place, tmp_path, capsys):
    plain_adapter(build("llama"), tmp_path / "theirs", r=4, lora_alpha=8, target_modules="all-linear")
    assert invoke(["adapters", "check", str(tmp_path / "theirs")]) == 2
    assert "does not say of which base it is" in capsys.readouterr().err
    found = told(capsys, "check", tmp_path / "theirs", "--base", place / "bases" / "llama")
    assert found["name"] == "theirs" and found["servers"]["vllm"]["ok"]


def test_convert_to_plain_lora_is_proved_on_logits(place, tmp_path, capsys):
    done = told(capsys, "convert", place / "b", "--to", "lora", "--out", tmp_path / "b")
    assert done["exact"] and done["error"] == 0 and done["logits_difference"] < 1e-6 and "rsLoRA" in done["changes"][0]
    before = answers(load_plain(build("llama"), place / "b" / "adapter"))
    assert difference(answers(load_plain(build("llama"), tmp_path / "b")), before) < 1e-6
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert config["lora_alpha"] == 6 and not config["use_rslora"]  # 3/sqrt(4) is 6/4
    again = told(capsys, "check", tmp_path / "b")
    assert again["plain_lora"]["how"] == "plain" and again["servers"]["gguf"]["ok"]
    assert "Converted from" in (tmp_path / "b" / "README.md").read_text()
    assert invoke(["adapters", "convert", str(place / "b"), "--to", "lora", "--out", str(tmp_path / "b")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_convert_of_what_has_only_a_nearest(place, tmp_path, capsys):
    error = told(capsys, "convert", place / "dora", "--to", "lora", "--out", tmp_path / "d", code=6)["error"]
    assert "--rank N or --max-error" in error["fix"] and not (tmp_path / "d").exists()
    done = told(capsys, "convert", place / "dora", "--to", "lora", "--rank", 4, "--out", tmp_path / "d")
    assert not done["exact"] and 0.05 < done["error"] < 1 and done["logits_difference"] > 1e-3
    card = (tmp_path / "d" / "README.md").read_text()
    assert f"relative error {done['error']:.2g}" in card
    near = told(capsys, "convert", place / "dora", "--to", "lora", "--max-error", 0.01, "--out", tmp_path / "near")
    assert near["error"] <= 0.01 and near["rank"] > 4 and near["logits_difference"] < done["logits_difference"]
    assert told(capsys, "convert", place / "head", "--to", "lora", "--out", tmp_path / "h", code=6)


def test_convert_to_gguf(place, tmp_path, capsys):
    gguf = pytest.importorskip("gguf")
    done = told(capsys, "convert", place / "b", "--to", "gguf", "--out", tmp_path / "g")
    fields = gguf.GGUFReader(tmp_path / "g" / "adapter.gguf").fields
    assert fields["general.type"].contents() == "adapter" and fields["adapter.lora.alpha"].contents() == 6
    assert done["facts"]["layers"] == 14
    card = (tmp_path / "g" / "README.md").read_text()
    assert "Converted from" in card and "--lora adapter.gguf" in card and 'Target("gguf", "q8_0")' in card
    assert (tmp_path / "g" / "chat_template.jinja").is_file() and "--chat-template-file" in card


def test_merge_writes_the_sum_and_says_of_what(place, tmp_path, capsys):
    named = [f"a={place / 'a'}:0.5", f"b-2={place / 'b'}"]
    done = told(capsys, "merge", *named, "--how", "cat", "--out", tmp_path / "sum")
    assert done["weights"] == {"a": 0.5, "b-2": 1.0} and done["rank"] == 8 and done["distance"] < 1e-6
    base, found = (
        build("llama").state_dict(),
        load_plain(build("llama"), tmp_path / "sum").merge_and_unload().state_dict(),
    )
    parts = {
        name: load_plain(build("llama"), place / name / "adapter").merge_and_unload().state_dict() for name in "ab"
    }
    for key, tensor in base.items():
        exact = 0.5 * (parts["a"][key] - tensor) + (parts["b"][key] - tensor)
        assert (found[key] - tensor - exact).abs().max() < 1e-5
    assert "0.5 x a" in (tmp_path / "sum" / "README.md").read_text()
    # the sum is an adapter as any other
    twice = told(capsys, "merge", f"s={tmp_path / 'sum'}", "--weights", "2", "--how", "svd", "--out", tmp_path / "two")
    assert twice["weights"] == {"s": 2.0} and twice["distance"] < 1e-5


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["a={p}/a", "o={p}/other"], 5, "of other base weights: o:"),
        (["a={p}/a", "d={p}/dora", "h={p}/head"], 6, "h: "),
        (["a={p}/a", "b={p}/b", "--weights", "1"], 2, "1 weights for 2 adapters"),
        (["a={p}/a:2", "--weights", "1"], 2, "given twice"),
        (["a={p}/a", "--weights", "much"], 2, "are no weights"),
        (["{p}/a", "b c={p}/b"], 2, "is not name=RUN"),
        (["a.b={p}/a", "../c={p}/b", "d="], 2, "'a.b={p}/a' is not name=RUN; '../c={p}/b' is not name=RUN; 'd='"),
        (["a={p}/a", "a={p}/b"], 2, "the name a is given twice"),
        (["a={p}/a", "b={p}/b", "--how", "cat", "--rank", "3"], 2, "a rank is for svd only"),
    ],
)
def test_merge_refuses_with_a_reason_and_leaves_nothing(arguments, code, words, place, tmp_path, capsys):
    given = [text.format(p=place) for text in arguments]
    error = told(capsys, "merge", *given, "--out", tmp_path / "sum", code=code)["error"]
    assert words.format(p=place) in error["what"] and list(tmp_path.iterdir()) == []


def test_pack_for_peft_is_a_verified_folder_of_each(place, tmp_path, capsys, monkeypatch):
    base, out = place / "bases" / "llama", tmp_path / "pack"
    done = told(capsys, "pack", base, f"a={place / 'a'}", f"d={place / 'dora'}", "--to", "peft", "--out", out)
    assert done["adapters"] == ["a", "d"] and set(done["exports"]) == {"a", "d"}
    for name, run in (("a", "a"), ("d", "dora")):
        assert (out / name / "artifact.json").is_file() and (out / name / "verification.json").is_file()
        before = answers(load_plain(build("llama"), place / run / "adapter"))
        assert difference(answers(load_plain(build("llama"), out / name)), before) < 1e-6
    text = (out / "README.md").read_text()
    assert f"--enable-lora --max-loras 1 --max-lora-rank 8 --lora-modules a={out / 'a'}" in text
    assert "- `d`: vLLM has no DoRA" in text and 'adapter_name="d"' in text
    # an export is an adapter as any other, and what was found out about it is found out anew
    monkeypatch.chdir(tmp_path)
    found = told(capsys, "pack", base, f"again={out / 'a'}", "--to", "peft")
    assert found["path"] == "again-peft" and (tmp_path / "again-peft" / "again").is_dir(), "named by what it holds"
    card = (tmp_path / "again-peft" / "again" / "README.md").read_text()
    assert (
        card.count("## Serving") == 1 and card.count("## Chat template") == 1 and card.count("verification.json") == 2
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["a={p}/a", "o={p}/other", "--to", "onnx"], 5, "of other base weights: o:"),
        (["a={p}/a", "f={p}/full", "--to", "peft"], 2, "f: tuned in full"),
        (["d={p}/dora", "h={p}/head", "--to", "onnx"], 6, "h: "),
        (["a={p}/a", "--to", "peft", "--precision", "int4"], 2, "for onnx only"),
    ],
)
def test_pack_refuses_before_anything_is_built(arguments, code, words, place, tmp_path, capsys):
    given = [text.format(p=place) for text in arguments]
    error = told(capsys, "pack", place / "bases" / "llama", *given, "--out", tmp_path / "pack", code=code)["error"]
    assert words in error["what"] and not (tmp_path / "pack").exists()


def packable(folder: Path) -> list[str]:
    """Two runs over one small base with heads that the builder takes, as arguments."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads, eos_token_id=256)).save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    for name, method in (("a", {}), ("b", {"use_rslora": True})):
        made_run(folder / name, recipe_of(folder / "base", {**method, "target_modules": ["q_proj", "v_proj"]}))
    return [f"{name}={folder / name}" for name in "ab"]


@pytest.mark.slow
def test_pack_for_onnx(tmp_path, capsys):
    pytest.importorskip("onnxruntime_genai")
    out, named = tmp_path / "pack", packable(tmp_path)
    done = told(capsys, "pack", tmp_path / "base", *named, "--to", "onnx", "--precision", "fp32", "--out", out)
    assert done["adapters"] == ["a", "b"] and (out / "artifact.json").is_file()


@pytest.mark.skipif(os.environ.get("TUNESMITH_LONG") != "1", reason="TUNESMITH_LONG=1 builds a second graph")
def test_convert_for_onnx(tmp_path, capsys):
    pytest.importorskip("onnxruntime_genai")
    packable(tmp_path)
    one = told(capsys, "convert", tmp_path / "b", "--to", "onnx", "--precision", "fp32", "--out", tmp_path / "one")
    assert one["adapters"] == ["b"] and one["exact"]
