"""ONNX exports for ONNX Runtime GenAI: what lies in them, what they answer, and what cannot be exported."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
import psutil
import pytest
import torch

from tests.export.onnx.twins import (
    IDS,
    export,
    int4_export,
    opened,
    peft_logits,
    save_adapter,
    save_model,
)
from tunesmith.errors import ResourceError
from tunesmith.export.onnx import builder
from tunesmith.export.onnx.graph import load_graph, nodes_by_name
from tunesmith.export.onnx.view import builder_view
from tunesmith.export.types import StepError
from tunesmith.inference.artifacts import open_artifact
from tunesmith.models.artifact import Target, read_artifact

long = pytest.mark.skipif(os.environ.get("TUNESMITH_LONG") != "1", reason="TUNESMITH_LONG=1 builds every family")


@pytest.fixture
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


def divergence(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence of next-token probabilities."""
    p, q = (torch.from_numpy(one).double().log_softmax(-1) for one in (theirs, ours))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_an_int4_export_holds_all_it_is_asked_with(root):
    base, _, artifact = int4_export(root)
    assert read_artifact(artifact.folder) == artifact
    assert set(artifact.files) == {
        "model.onnx", "model.onnx.data", "genai_config.json", "config.json", "chat_template.jinja",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    settings = json.loads((artifact.folder / "genai_config.json").read_text())
    assert settings["model"]["eos_token_id"] == [256] == list(artifact.stop_ids)
    assert settings["model"]["context_length"] == settings["search"]["max_length"] == artifact.context == 256
    assert settings["search"]["repetition_penalty"] == 1.0 and not settings["search"]["do_sample"]
    template = (base / "chat_template.jinja").read_text()
    assert (artifact.folder / "chat_template.jinja").read_text() == template
    assert str(root).encode() not in (artifact.folder / "model.onnx").read_bytes()


def test_an_int4_export_says_how_its_weights_are_held(root):
    base, _, artifact = int4_export(root)
    facts = artifact.facts
    assert facts["quantising"] == "k_quant_mixed" and "failed" not in facts and "unverified" not in facts
    nodes = nodes_by_name(load_graph(artifact.folder))
    kinds = {node.op_type for node in nodes.values()}
    assert kinds == {"MatMulNBits"} and sum(facts["matrices_by_bits"].values()) == len(nodes)
    assert {"4", "8"} == set(facts["matrices_by_bits"])
    data = (artifact.folder / "model.onnx.data").stat().st_size
    tables = 2 * 4 * 256 * 8  # cosines and sines, which are no weights: bytes of 256 positions by half a head
    assert facts["bits_per_weight"] == pytest.approx(8 * (data - tables) / count(base), rel=0.1)
    assert 4.5 < facts["bits_per_weight"] < 9


def count(base: Path) -> int:
    from safetensors import safe_open

    with safe_open(base / "model.safetensors", framework="pt") as tensors:
        return sum(tensors.get_tensor(name).numel() for name in tensors.keys())  # noqa: SIM118


def test_an_int4_export_is_the_tuned_model(root):
    base, adapter, artifact = int4_export(root)
    ours = open_artifact(artifact).logits(IDS)
    tuned, plain = peft_logits(base, adapter), peft_logits(base, None)
    assert ours.shape == tuned.shape and ours.dtype == np.float32
    assert divergence(ours, tuned) < 0.1 * divergence(plain, tuned)


def test_plain_genai_opens_it_and_its_tokenizer_reads_as_ours(root):
    *_, artifact = int4_export(root)
    model = og.Model(str(artifact.folder))
    theirs, ours = og.Tokenizer(model), open_artifact(artifact).renderer.tokenizer
    for text in ("card lost?", "  two\n\nlines", "na\u00efve \u4f60\u597d \U0001f642", "<user>x", ""):
        assert list(theirs.encode(text)) == ours(text, add_special_tokens=False)["input_ids"]
        assert theirs.decode(theirs.encode(text)) == text
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=60)
    generator = og.Generator(model, params)
    generator.append_tokens(np.asarray([IDS], dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    assert len(generator.get_sequence(0)) > len(IDS)


def test_a_family_that_the_builder_does_not_know_is_refused_with_what_works(tmp_path):
    base = save_model(tmp_path / "base", "gpt2")
    with pytest.raises(StepError) as caught:
        export(tmp_path / "out", opened(base), Target("onnx", "int4"))
    assert caught.value.step == "building the graph" and "GPT2LMHeadModel" in caught.value.reason
    assert "not currently supported" in caught.value.reason and str(tmp_path) not in str(caught.value)
    assert "onnx-plain" in caught.value.instead and "gguf" in caught.value.instead
    assert list((tmp_path / "out").iterdir()) == []


def test_a_device_without_a_provider_is_refused_before_anything_is_done(tmp_path, root):
    base, adapter, _ = int4_export(root)
    with pytest.raises(StepError, match="npu") as caught:
        export(tmp_path / "out", opened(base, adapter), Target("onnx", "int4", device="npu"))
    assert "openvino" in caught.value.instead and not list((tmp_path / "out-scratch").iterdir())


def built_with(monkeypatch: pytest.MonkeyPatch, *said: tuple[int, str]) -> list[list[str]]:
    """Have the builder end like this, one run after the other; the commands it was asked with."""
    runs, asked = list(said), []

    def ended(command, log, env=None):
        asked.append(list(command))
        status, text = runs.pop(0)
        log.write_text(text)
        if status == 0:
            out = Path(command[command.index("--output") + 1])
            (out / "model.onnx").touch()
            (out / "genai_config.json").touch()
        return status

    monkeypatch.setattr(builder, "run_apart", ended)
    return asked


@pytest.fixture
def folders(tmp_path):
    model, out, scratch = (tmp_path / name for name in ("model", "out", "scratch"))
    for folder in (model, out, scratch):
        folder.mkdir()
    (model / "config.json").write_text('{"architectures": ["OddForCausalLM"]}')
    return model, out, scratch


PACKING = "  File matmul_nbits_quantizer.py\nValueError: cannot reshape array of size 96\n"


def test_a_scheme_that_fails_gives_way_to_the_next(folders, monkeypatch):
    asked = built_with(monkeypatch, (1, PACKING), (0, ""))
    made = builder.build(*folders, "int4", "cpu")
    assert made.scheme.name == "k_quant_mixed, blocks of 16"
    assert made.failed == {"k_quant_mixed": "ValueError: cannot reshape array of size 96"}
    first, second = (command[command.index("--extra_options") + 1 :] for command in asked)
    assert first == ["algo_config=k_quant_mixed", "hf_remote=false", "windowed_kv_cache=false"]
    assert second == ["algo_config=k_quant_mixed", "block_size=16", "hf_remote=false", "windowed_kv_cache=false"]


def test_no_scheme_works(folders, monkeypatch):
    built_with(monkeypatch, *[(1, PACKING)] * 3)
    (folders[1] / "half-written").touch()
    with pytest.raises(StepError) as caught:
        builder.build(*folders, "int4", "cpu")
    assert caught.value.step == "quantising the graph" and "cannot reshape" in caught.value.reason
    assert "fp32" in caught.value.instead and list(folders[1].iterdir()) == []


def test_what_is_no_matter_of_quantising_is_not_tried_again(folders, monkeypatch):
    asked = built_with(monkeypatch, (1, "Traceback\nKeyError: 'rope_type'\nException ignored in: x\n"))
    with pytest.raises(StepError, match=r"OddForCausalLM.*KeyError: 'rope_type'") as caught:
        builder.build(*folders, "int4", "cpu")
    assert len(asked) == 1 and "fp32" not in caught.value.instead


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [(1, "OSError: [Errno 28] No space left on device", "disk"), (1, "MemoryError", "memory"), (-9, "", "memory")],
)
def test_no_disk_and_no_memory_are_told_as_what_they_are(folders, monkeypatch, status, text, said):
    built_with(monkeypatch, (status, text))
    with pytest.raises(ResourceError, match=said):
        builder.build(*folders, "fp32", "cpu")


def test_options_are_named_as_a_version_knows_them(folders, monkeypatch):
    monkeypatch.setattr(builder, "version", lambda name: "0.16.2")
    asked = built_with(monkeypatch, (0, ""))
    builder.build(*folders, "int4", "cpu")
    assert asked[0][-2:] == ["int4_algo_config=k_quant_mixed", "hf_remote=false"] and not builder.can_set_bits()


def test_the_builder_is_asked_offline_and_keeps_to_its_scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    env = builder.apart_environment(tmp_path)
    assert env["HF_HUB_OFFLINE"] == env["TRANSFORMERS_OFFLINE"] == env["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert Path(env["TMPDIR"]).is_dir() and Path(env["HF_HOME"]).is_relative_to(tmp_path)


def test_modules_that_lie_where_somebody_works_are_not_run(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("print('taken for a module')")
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "log"
    status = builder.run_apart(
        [sys.executable, "-m", "json.tool", "--help"], log, builder.apart_environment(tmp_path / "scratch")
    )
    assert status == 0 and "usage" in log.read_text() and "taken" not in log.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
def test_the_builder_ends_where_this_process_is_killed(tmp_path):
    inner = (
        "import os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "time.sleep(60)"
    )
    script = (
        "import sys, pathlib\nfrom tunesmith.export.onnx.builder import run_apart\n"
        f"run_apart([sys.executable, '-c', {inner!r}], pathlib.Path({str(tmp_path / 'log')!r}))\n"
    )
    outer = subprocess.Popen([sys.executable, "-c", script])
    assert _soon(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text() != "")
    outer.kill()
    outer.wait()
    child = int((tmp_path / "pid").read_text())
    assert _soon(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def _soon(true: Callable[[], bool]) -> bool:
    """Whether something becomes true within 15 seconds."""
    for _ in range(300):
        if true():
            return True
        time.sleep(0.05)
    return False


def test_an_interruption_ends_the_builder_and_all_it_started(tmp_path):
    script = (
        "import subprocess, sys, time, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )

    def interrupt(*_: object) -> None:
        if (tmp_path / "child").is_file() and (tmp_path / "child").read_text():
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            builder.run_apart([sys.executable, "-c", script], tmp_path / "log")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    child = int((tmp_path / "child").read_text())
    assert _soon(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nValueError: x\r 50%|##\rdone\n", "ValueError: x"),
        ("onnx.checker.ValidationError: No Op\n", "onnx.checker.ValidationError: No Op"),
        ("killed\n", "killed"),
        ("", ""),
    ],
)
def test_the_exception_is_found_in_what_a_program_printed(text, line):
    assert builder.failure_line(text) == line


def test_windows_of_all_layers_are_spelt_out_for_the_builder(tmp_path):
    base = save_model(tmp_path / "base", "mistral window")
    view = builder_view(base, tmp_path / "scratch")
    assert json.loads((view / "config.json").read_text())["layer_types"] == ["sliding_attention"] * 2
    assert {path.name for path in view.iterdir()} == {path.name for path in base.iterdir()}
    assert (view / "model.safetensors").samefile(base / "model.safetensors")
    assert "layer_types" not in json.loads((base / "config.json").read_text())
    settings = json.loads((base / "config.json").read_text()) | {"model_type": "own", "auto_map": {"AutoConfig": "a.B"}}
    (base / "config.json").write_text(json.dumps(settings))
    assert builder_view(base, tmp_path / "scratch") == base, "code in a model's folder is not run"
    for family in ("mistral", "gemma2"):
        plain = save_model(tmp_path / family, family)
        assert builder_view(plain, tmp_path / "scratch") == plain


@long
@pytest.mark.parametrize(
    "family",
    [
        "llama", "llama tied", "qwen2", "qwen3", "mistral", "mistral window", "granite", "smollm3", "gemma", "gemma2",
        "phi3",
    ],
)  # fmt: skip
def test_a_family_is_exported_as_it_is(tmp_path, family):
    base = save_model(tmp_path / "base", family)
    targets = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj") if family == "phi3" else ("q_proj", "v_proj")
    adapter = save_adapter(tmp_path / "adapter", base, targets=targets)
    source = opened(base, adapter)
    merged = open_artifact(export(tmp_path / "one", source, Target("onnx", "fp32")))
    tuned = peft_logits(base, adapter)
    np.testing.assert_allclose(merged.logits(IDS), tuned, rtol=0, atol=1e-4)
    assert float(np.abs(tuned - peft_logits(base, None)).max()) > 0.05
    many = export(tmp_path / "many", source, Target("onnx-multi", "fp32"), {"a": source})
    np.testing.assert_allclose(open_artifact(many, "a").logits(IDS), tuned, rtol=0, atol=1e-4)
    np.testing.assert_allclose(open_artifact(many).logits(IDS), peft_logits(base, None), rtol=0, atol=1e-4)
    shutil.rmtree(tmp_path / "many")


@long
@pytest.mark.parametrize(
    ("family", "step"),
    [
        ("gemma3", "building the graph"),
        ("smollm3 without positions", "building the graph"),
        ("phi", "running the graph"),
        ("odd heads", "running the graph"),
    ],
)
def test_a_family_that_fails_says_at_which_step(tmp_path, family, step):
    base = save_model(tmp_path / "base", family)
    with pytest.raises(StepError) as caught:
        export(tmp_path / "out", opened(base), Target("onnx", "fp32"))
    assert caught.value.step == step and "onnx-plain" in caught.value.instead


@long
def test_layers_of_an_odd_number_of_blocks_are_quantised_in_smaller_ones(tmp_path):
    base = save_model(tmp_path / "base", "odd blocks")
    artifact = export(tmp_path / "out", opened(base), Target("onnx", "int4"))
    assert artifact.facts["quantising"] == "k_quant_mixed, blocks of 16" and "k_quant_mixed" in artifact.facts["failed"]
    assert divergence(open_artifact(artifact).logits(IDS), peft_logits(base, None)) < 0.05


@long
@pytest.mark.parametrize(("precision", "bound"), [("int8", 1e-3), ("fp16", 1e-5)])
@pytest.mark.parametrize("family", ["llama", "llama tied"])
def test_other_precisions(tmp_path, family, precision, bound):
    base = save_model(tmp_path / "base", family)
    artifact = export(tmp_path / "out", opened(base), Target("onnx", precision))
    assert divergence(open_artifact(artifact).logits(IDS), peft_logits(base, None)) < bound
    assert artifact.facts["bits_per_weight"] < (13 if precision == "int8" else 17)


@long
@pytest.mark.parametrize("device", ["cuda", "directml"])
def test_what_is_made_for_an_absent_device_runs_on_the_cpu_and_says_so(tmp_path, device):
    base = save_model(tmp_path / "base", "llama")
    artifact = export(tmp_path / "out", opened(base), Target("onnx", "fp16", device=device))
    assert artifact.facts["unverified"] == f"it was run on a CPU here, never on {device}"
    settings = json.loads((artifact.folder / "genai_config.json").read_text())
    assert settings["model"]["decoder"]["session_options"]["provider_options"]
    assert divergence(open_artifact(artifact).logits(IDS), peft_logits(base, None)) < 1e-4
