from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.service.grading.formula import LONGEST, FormulaError, read_formula


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", 7.0),
        ("(1 + 2) * 3", 9.0),
        ("8 / 2 / 2", 2.0),
        ("7 - 2 - 1", 4.0),
        ("2 ^ 3 ^ 2", 512.0),
        ("-2 ^ 2", -4.0),
        ("(-2) ^ 2", 4.0),
        ("2 ^ -1", 0.5),
        ("- - 3", 3.0),
        ("+3", 3.0),
        ("1.5e1 + .5", 15.5),
        ("min(3, 1, 2) + max(a)", 1.25),
        ("max(a, b) - abs(-b)", 0.0),
        ("floor(2.7) + ceil(2.1)", 5.0),
        ("sqrt(16) + exp(0) + log(1)", 5.0),
        ("0.5 * a + 0.5 * b", 0.375),
    ],
)
def test_value(text: str, value: float) -> None:
    assert read_formula(text)({"a": 0.25, "b": 0.5}) == pytest.approx(value)


def test_names_are_those_of_graders_only() -> None:
    assert read_formula("max(a, 1) + b_2 * exp(a)").names == {"a", "b_2"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "ends where"),
        ("1 +", "ends where"),
        ("1 2", "'2' is not expected"),
        ("(1", r"'\)' is expected in place of the end"),
        ("1)", r"'\)' is not expected"),
        ("a.b", r"cannot be read at '.b'"),
        ("a[0]", "cannot be read"),
        ("__import__('os')", "cannot be read|is no function"),
        ("eval(a)", "'eval' is no function; there are abs, ceil"),
        ("abs(a, a)", "takes 1 argument, not 2"),
        ("min()", "expected in place of"),
        ("a ** 2", r"in place of '\*'"),
        ("1 % 2", "cannot be read"),
        ("a if b else c", "'if' is not expected"),
        ("(" * 60 + "1" + ")" * 60, "nested more than 50"),
        ("-" * 60 + "1", "nested more than 50"),
        ("2" + "^2" * 60, "nested more than 50"),
        ("1+" * LONGEST + "1", "at most 2,000"),
    ],
)
def test_refused(text: str, says: str) -> None:
    with pytest.raises(FormulaError, match=says):
        read_formula(text)


@pytest.mark.parametrize(
    "text", ["1 / a", "log(a)", "sqrt(a - 1)", "exp(1000)", "10 ^ 1000", "(a - 1) ^ 0.5", "1e308 * 10"]
)
def test_without_a_value(text: str) -> None:
    with pytest.raises(FormulaError, match="gives no"):
        read_formula(text)({"a": 0.0})


@pytest.mark.parametrize("text", ["+".join(["a"] * 1_000), "*".join(["a"] * 1_000), "(" * 50 + "a" + ")" * 50])
def test_a_long_formula_is_no_deep_one(text: str) -> None:
    assert read_formula(text)({"a": 1.0}) in (1_000.0, 1.0)


numbers = st.integers(0, 20).map(str) | st.floats(0, 20).map(lambda x: f"{x:.3f}")
formulas = st.recursive(
    numbers,
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda x: f"({x[0]} {x[1]} {x[2]})")
        | inner.map(lambda x: f"-({x})")
        | st.tuples(inner, inner).map(lambda x: f"max({x[0]}, {x[1]})")
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(formulas)
def test_the_same_as_python(text: str) -> None:
    try:
        expected = eval(text, {"max": max})
    except ZeroDivisionError:
        with pytest.raises(FormulaError):
            read_formula(text)({})
    else:
        assert math.isclose(read_formula(text)({}), expected, rel_tol=1e-9, abs_tol=1e-12)


@settings(deadline=None)
@given(st.text(alphabet="ab1.+-*/^(), minax", max_size=40))
def test_never_anything_but_a_formula_error(text: str) -> None:
    with contextlib.suppress(FormulaError):
        formula = read_formula(text)
        formula({**dict.fromkeys(formula.names, 0.5), "b": 0.0})
