"""What a run's learning curve says of more rows reaches the report's next steps."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from tunesmith.pipeline.extrapolation import extrapolate
from tunesmith.pipeline.learning_curve import CURVE
from tunesmith.pipeline.reporting import _more_rows
from tunesmith.runs import RunFolder, write_json


def test_the_first_prediction_of_the_curve_is_read(tmp_path: Path) -> None:
    folder = RunFolder.create_at(tmp_path / "run")
    assert _more_rows(folder) is None
    values = [0.6, 0.7, 0.77]
    draws = np.array(values)[:, None] + np.random.default_rng(0).normal(0, 0.01, (3, 200))
    found = extrapolate([100, 200, 400], values, draws, min_gain=0.01, confidence=0.95)
    assert found is not None
    path = folder.path / "learning_curve" / CURVE
    path.parent.mkdir()
    write_json(path, {"extrapolation": asdict(found)})
    more = _more_rows(folder)
    assert more is not None and more.rows == 800
    assert more.gain_low <= more.gain <= more.gain_high and more.gain > 0.02
    write_json(path, {"extrapolation": None})
    assert _more_rows(folder) is None
