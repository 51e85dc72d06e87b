"""The curve of the base: events to points, points to a power law, and the picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "pretrain"


@pytest.fixture
def curve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the script sees it."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import curve

    return curve


def event(kind: str, step: int, **values: Any) -> str:
    return json.dumps({"minutes": 0.1, "kind": kind, "step": step, **values})


def log(path: Path, points: list[tuple[int, float, float]], rate: float = 1e-3) -> Path:
    """(step, tokens, loss) as train.py tells them, with other lines between."""
    lines = ["a warning of some library", json.dumps({"kind": "train_started", "steps": 9}), json.dumps({"steps": 9})]
    for step, tokens, loss in points:
        facts = {"tokens_per_second": tokens / 50, "seconds": 50.0, "learning_rate": rate, "loss": 9.0}
        lines += [event("train_step", step, **facts), event("validation", step, loss=loss, metrics={}, best=False)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def law_points(curve: Any, law: Any, noise: float = 0.0, count: int = 12) -> list[Any]:
    draw = np.random.default_rng(0)
    tokens = np.linspace(1e6, 4e7, count)
    losses = law.at(tokens) + draw.normal(0, noise, count)
    return [curve.Point(i, t, loss, 1e-3) for i, (t, loss) in enumerate(zip(tokens, losses, strict=True))]


def test_points_are_held_out_losses_at_the_tokens_of_their_step(curve: Any, tmp_path: Path) -> None:
    points = curve.read_points([log(tmp_path / "run.log", [(10, 1000, 5.0), (20, 2000, 4.0)])])
    assert [(p.step, round(p.tokens), p.loss, p.learning_rate) for p in points] == [
        (10, 1000, 5.0, 1e-3),
        (20, 2000, 4.0, 1e-3),
    ]


def test_stages_add_up_and_what_was_told_again_holds(curve: Any, tmp_path: Path) -> None:
    first = log(tmp_path / "1.log", [(10, 1000, 5.0), (20, 2000, 4.5), (20, 2000, 4.4)])
    second = log(tmp_path / "2.log", [(10, 500, 4.0)])
    points = curve.read_points([first, second])
    assert [(round(p.tokens), p.loss) for p in points] == [(1000, 5.0), (2000, 4.4), (2500, 4.0)]


@pytest.mark.parametrize(("limit", "exponent"), [(0.0, 0.1), (1.8, 0.3), (2.5, 0.8)])
def test_a_power_law_is_found_again(curve: Any, limit: float, exponent: float) -> None:
    law = curve.PowerLaw(limit, 2.0 * 1e6**exponent, exponent)
    fitted = curve.fit(law_points(curve, law))
    assert fitted.law.exponent == pytest.approx(exponent, abs=0.011)
    assert fitted.law.limit == pytest.approx(limit, abs=0.12)
    assert fitted.error < 1e-3
    assert fitted.predicted(4e8)[0] == pytest.approx(float(law.at(4e8)), abs=0.02)


def test_noise_widens_the_band_and_the_truth_lies_in_it(curve: Any) -> None:
    law = curve.PowerLaw(1.8, 120.0, 0.3)
    sure = curve.fit(law_points(curve, law, 1e-4)).predicted(4e8)
    unsure = curve.fit(law_points(curve, law, 1e-2)).predicted(4e8)
    assert unsure[1] <= law.at(4e8) <= unsure[2]
    assert unsure[2] - unsure[1] > 3 * (sure[2] - sure[1])
    assert curve.fit(law_points(curve, law, 1e-2)) == curve.fit(law_points(curve, law, 1e-2))


def test_losses_that_rise_give_no_falling_law(curve: Any) -> None:
    points = [curve.Point(i, 1e6 * (i + 1), 3 + 0.1 * i, 1e-3) for i in range(6)]
    law = curve.fit(points).law
    assert law.scale == 0
    assert law.at(1e9) == pytest.approx(3.25)


def test_only_the_peak_rate_is_fitted(curve: Any) -> None:
    rates = [1e-4, *[1e-3] * 6, 5e-4, 1e-6]
    points = [curve.Point(i, 1e6 * (i + 1), 3.0, rate) for i, rate in enumerate(rates)]
    assert [p.step for p in curve.at_peak(points)] == [1, 2, 3, 4, 5, 6]
    assert len(curve.at_peak(points[4:])) == 5  # three at the peak are too few: all


def test_the_fall_at_the_end_is_told_apart(curve: Any) -> None:
    law = curve.PowerLaw(1.8, 120.0, 0.3)
    points = [*law_points(curve, law), curve.Point(12, 5e7, float(law.at(5e7)) - 0.2, 1e-6)]
    said = curve.summary(points, curve.fit(curve.at_peak(points)), 0)
    assert said["below_law_at_end"] == pytest.approx(0.2, abs=0.01)
    assert said["law_points"] == 12
    assert said["foreseen"]["10"]["tokens"] == 5e8
    changes = [said["foreseen"][times]["change"] for times in ("2", "5", "10")]
    assert changes == sorted(changes, reverse=True)
    assert all(change < 0 for change in changes)


def test_too_few_points_are_refused(curve: Any) -> None:
    with pytest.raises(ValueError, match="4 points, expected at least 5"):
        curve.fit(law_points(curve, curve.PowerLaw(1, 1, 0.3), count=4))


def test_the_picture_is_svg_with_every_point_inside(curve: Any) -> None:
    points = law_points(curve, curve.PowerLaw(1.8, 120.0, 0.3), 1e-2)
    root = ElementTree.fromstring(curve.picture(points, curve.fit(points), "Loss <of> a base & more"))
    dots = root.findall("{*}circle")
    assert len(dots) == 12
    places = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in dots]
    assert all(curve._LEFT <= x <= curve._WIDTH - curve._RIGHT for x, _ in places)
    assert all(curve._TOP <= y <= curve._HEIGHT - curve._BOTTOM for _, y in places)
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert places[0][1] < places[-1][1]  # losses fall, and the y axis of SVG grows downwards
    assert "Loss <of> a base & more" in "".join(root.itertext())
    assert "after 40 M" in root.attrib["aria-label"]


def test_the_command_prints_and_draws(tmp_path: Path) -> None:
    points = [(i, 1e5 * i, 2 + 30 * (1e5 * i) ** -0.25) for i in range(1, 9)]
    path = log(tmp_path / "run.log", points)
    command = [sys.executable, str(SCRIPTS / "curve.py"), str(path), "--svg", str(tmp_path / "curve.svg")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["law"]["exponent"] == pytest.approx(0.25, abs=0.02)
    ElementTree.parse(tmp_path / "curve.svg")
    few = log(tmp_path / "few.log", points[:3])
    done = subprocess.run([*command[:2], str(few)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "3 validation events" in done.stderr
