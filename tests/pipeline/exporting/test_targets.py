"""From what a person says to the target that is meant, or to one error that names everything that does not go."""

from __future__ import annotations

import pytest

from tunesmith.errors import RecipeError
from tunesmith.models.artifact import KINDS, PRECISIONS, Target
from tunesmith.pipeline.exporting.bounds import FULL, HALF, bounds_of
from tunesmith.pipeline.exporting.space import _BITS
from tunesmith.pipeline.exporting.targets import RUNTIMES, choose_targets, refuse_impossible


def one(*kinds: str, **said: object) -> str:
    found = choose_targets(kinds, **said)  # type: ignore[arg-type]
    assert len(found) == 1
    return str(found[0])


def test_kinds_bits_precisions_and_runtimes():
    assert one("adapter") == "adapter" and one("merged") == "merged" and one("gguf") == "gguf-q8_0"
    assert one("merged", bits=16) == "merged-bf16" and one("merged", precision="fp16") == "merged-fp16"
    assert one("onnx") == "onnx-int4" and one("onnx", bits=8) == "onnx-int8" and one("onnx", bits=32) == "onnx-fp32"
    assert one("onnx", device="cuda") == "onnx-fp16"
    assert one("gguf", bits=4) == "gguf-q4_0" and one("gguf", precision="q4_k_m") == "gguf-q4_k_m"
    assert one(runtime="ollama") == "gguf-q8_0" and one(runtime="ollama", bits=4) == "gguf-q4_0"
    assert one(runtime="vllm") == "adapter" and one("merged", runtime="vllm") == "merged"
    assert one(runtime="vllm", bits=4) == "awq-int4" and one(runtime="vllm", bits=8) == "gptq-int8"
    assert one(runtime="vllm", precision="bf16") == "merged-bf16"
    assert one(runtime="ort-genai") == "onnx-int4" and one(runtime="openvino") == "openvino-int8"
    assert [str(t) for t in choose_targets(["onnx", "gguf"], bits=8)] == ["onnx-int8", "gguf-q8_0"]
    assert choose_targets(["onnx"], device="directml")[0] == Target("onnx", "int4", "directml")
    assert choose_targets(["fp8"])[0].device == "cuda"


@pytest.mark.parametrize(
    ("kinds", "said", "expected"),
    [
        ([], {}, "--to adapter"),
        (["onxx"], {}, "'onxx' is no format"),
        (["onnx"], {"device": "tpu"}, "--device cpu, cuda, directml, npu"),
        (["onnx"], {"runtime": "lorax"}, "--target ollama, vllm"),
        (["onnx"], {"bits": 5}, "--bits 4, 8, 16, 32 for onnx"),
        (["adapter"], {"bits": 4}, "no --bits for adapter"),
        (["onnx"], {"precision": "q4_0"}, "--precision int4, int8, fp16, fp32 for onnx"),
        (["onnx"], {"bits": 4, "precision": "int4"}, "two ways to say the same"),
        (["adapter"], {"runtime": "ollama"}, "--to gguf for ollama"),
        (["gguf"], {"device": "npu"}, "--to onnx, openvino for npu"),
    ],
)
def test_what_does_not_go_names_what_does(kinds, said, expected):
    with pytest.raises(RecipeError) as caught:
        choose_targets(kinds, **said)
    assert expected in str(caught.value) and caught.value.exit_code == 2


def test_everything_that_does_not_go_is_said_at_once():
    with pytest.raises(RecipeError) as caught:
        choose_targets(["onnx", "merged"], bits=4, device="directml")
    assert "merged is not made for directml" in str(caught.value) and "merged has no 4 bits" in str(caught.value)
    with pytest.raises(RecipeError) as caught:
        choose_targets(["onxx"], device="tpu", runtime="lorax")
    assert all(word in str(caught.value) for word in ("onxx", "tpu", "lorax"))


def test_every_kind_and_precision_is_known_everywhere():
    for kind in KINDS:
        for precision in PRECISIONS[kind]:
            target = Target(kind, precision)
            refuse_impossible(target)
            assert precision == "own" or _BITS[precision] > 0
            bounds = bounds_of(target, ["float32"])
            assert bounds.error is not None or bounds.scaled is not None or bounds.kl is not None
    assert {kind for runtime in RUNTIMES.values() for kind in runtime.kinds} <= set(KINDS)
    assert bounds_of(Target("merged", "own"), ["torch.bfloat16"]) is HALF
    assert bounds_of(Target("merged", "own"), ["float32"]) is bounds_of(Target("adapter", "own"), ["bfloat16"]) is FULL
    gguf = {precision: Target("gguf", precision) for precision in ("f32", "q8_0")}
    assert bounds_of(gguf["f32"], [], half_activations=True) is HALF and bounds_of(gguf["f32"], []) is FULL
    assert bounds_of(gguf["q8_0"], [], half_activations=True) is bounds_of(gguf["q8_0"], [])
