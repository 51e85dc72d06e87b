"""Quantised exports of a real run, calibrated on its own training rows and proved like every other."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tunesmith.cli.main import invoke
from tunesmith.errors import RecipeError
from tunesmith.inference.artifacts import open_artifact
from tunesmith.models.artifact import Target, read_artifact
from tunesmith.pipeline.exporting.flow import export_run, export_run_to

TARGETS = [Target("gptq", "int8"), Target("gptq", "int4"), Target("awq", "int4"), Target("fp8", "fp8")]


def test_quantised_exports_of_a_run_are_proved(tuned):
    targets = [*TARGETS, *([Target("torchao", "int8")] if find_spec("torchao") else [])]
    done = export_run_to(tuned, [(target, None) for target in targets], max_loss=0.3)
    assert [one.artifact.target for one in done] == targets
    for exported in done:
        assert exported.verification.passed
        artifact = read_artifact(exported.path)
        if artifact.target.kind in ("gptq", "awq"):
            assert artifact.facts["method"].startswith(artifact.target.kind)  # and not RTN: there were rows
            assert artifact.facts["calibration_kl"] < 0.15
        assert open_artifact(artifact).logits([3, 4]).shape[0] == 2


def test_mixed_precision_keeps_its_bound(tuned):
    exported = export_run(tuned, Target("gptq", "int4"), mixed=0.02, max_loss=0.3)
    plan = read_artifact(exported.path).facts["plan"]
    assert plan["divergence"] <= plan["bound"] == 0.02
    assert {one["bits"] for one in plan["sensitivity"]} == {int(bits) for bits in plan["layers"]}


@pytest.mark.parametrize(("kind", "mixed", "said"), [("awq", 0.1, "awq is not made"), ("gptq", 0.0, "cannot be kept")])
def test_mixed_precision_that_cannot_be_is_refused(tuned, kind, mixed, said):
    with pytest.raises(RecipeError, match=said):
        export_run(tuned, Target(kind, "int4"), mixed=mixed)


def test_the_option_names_what_it_goes_with(tuned, capsys):
    assert invoke(["export", str(tuned.path), "--to", "awq", "--mixed", "0.1"]) == 2
    told = capsys.readouterr().err
    assert "--mixed" in told and "gptq" in told
    assert invoke(["export", str(tuned.path), "--to", "gptq", "--mixed", "0"]) == 2
    assert "--mixed" in capsys.readouterr().err
    assert not (tuned.path / "export").exists()
