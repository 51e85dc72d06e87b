"""Exports that are not the tuned model: each is caught by the check that is there for it, and kept aside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith.errors import VerificationError
from tunesmith.models.artifact import Target, read_artifact
from tunesmith.pipeline.exporting.flow import export_run
from tunesmith.pipeline.exporting.types import VERIFICATION, Verification
from tunesmith.runs import RunFolder, read_events

TEMPLATE = "chat_template.jinja"


def change_tensors(folder: Path, change) -> None:
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})


def zero_one_tensor(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in sorted(tensors) if "q_proj" in name and "lora_A" not in name)
        tensors[name] = torch.zeros_like(tensors[name])

    change_tensors(folder, change)


def other_template(folder: Path) -> None:
    path = folder / TEMPLATE
    path.write_text(path.read_text().replace("### Assistant", "### Answer"))


def half_scale(folder: Path) -> None:
    """Of an adapter its alpha, as a writer that forgets a factor would have it."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "lora_alpha": config["lora_alpha"] / 2}))


def base_weights(base: Path):
    """The merge that was forgotten."""

    def damage(folder: Path) -> None:
        plain = load_file(base / "model.safetensors")
        change_tensors(folder, lambda tensors: tensors.update({k: plain[k] for k in tensors if k in plain}))

    return damage


def half_merged(base: Path):
    """The merge with half the scale."""

    def damage(folder: Path) -> None:
        plain = load_file(base / "model.safetensors")
        change_tensors(
            folder, lambda tensors: tensors.update({k: (tensors[k] + plain[k]) / 2 for k in tensors if k in plain})
        )

    return damage


def no_stop(folder: Path) -> None:
    """The head's row of the end token, so that no answer ends."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"][256] = 0

    change_tensors(folder, change)


def not_numbers(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))


def failing(tuned: RunFolder, kind: str) -> Verification:
    """Export, which must fail, and what was found."""
    target = Target(kind, "own")  # type: ignore[arg-type]
    with pytest.raises(VerificationError) as caught:
        export_run(tuned, target)
    assert caught.value.exit_code == 5
    assert not (tuned.path / "export" / kind).exists()
    kept = tuned.path / "export" / f"{kind}.failed"
    assert str(kept) in str(caught.value)
    found = Verification.from_dict(json.loads((kept / VERIFICATION).read_text())["verification"][0])
    assert not found.passed and all(check.text in str(caught.value) for check in found.failed)
    assert read_artifact(kept).facts["verification"]["passed"] is False
    assert [e["reason"] for e in read_events(tuned.events_file) if e["kind"] == "export_failed"]
    assert "failed" in (kept / "README.md").read_text()
    left = [path.name for path in (tuned.path / "export").iterdir() if path.name.startswith(".")]
    assert left == []
    return found


def names(found: Verification) -> set[str]:
    return {check.name for check in found.failed}


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_a_zeroed_tensor_is_seen_in_the_logits(kind, tuned, damaging):
    damaging(zero_one_tensor)
    assert {"logits", "tuning kept"} & names(failing(tuned, kind)) >= {"logits"}


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_another_template_is_seen_by_its_text_and_its_tokens(kind, tuned, damaging):
    damaging(other_template)
    found = failing(tuned, kind)
    assert "template" in names(found) and "logits" not in names(found)
    assert "another text" in found.check("template").text and "3 of 3 conversations" in found.check("template").text


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_half_the_scale_is_half_the_tuning(kind, tuned, damaging, base):
    damaging(half_scale if kind == "adapter" else half_merged(base))
    found = failing(tuned, kind)
    assert {"logits", "tuning kept"} <= names(found)
    assert 0.2 < (found.check("tuning kept").value or 0) < 0.95  # of a model that changed so much, less than linear


def test_the_base_itself_is_not_the_tuned_model(tuned, damaging, base):
    damaging(base_weights(base))
    found = failing(tuned, "merged")
    assert {"logits", "tuning kept", "answers"} <= names(found)
    assert abs(found.check("tuning kept").value or 0) < 1e-3


def test_answers_that_no_longer_end_are_counted(tuned, damaging):
    damaging(no_stop)
    found = failing(tuned, "merged")
    assert "stops" in names(found) and (found.check("stops").value or 0) < (found.check("stops").bound or 0)


def test_logits_that_are_no_numbers(tuned, damaging):
    damaging(not_numbers)
    found = failing(tuned, "merged")
    assert {"logits", "tuning kept", "answers", "task", "stops"} <= names(found)
    assert found.numbers["mean_kl"] is None


def test_a_second_failure_takes_the_place_of_the_first_and_a_whole_one_goes_beside(tuned, damaging, monkeypatch):
    damaging(not_numbers)
    failing(tuned, "merged")
    damaging(no_stop)
    failing(tuned, "merged")
    damaging(lambda folder: None)
    exported = export_run(tuned, Target("merged", "own"))
    assert exported.verification.passed and exported.path.is_dir()
    assert (tuned.path / "export" / "merged.failed").is_dir()
