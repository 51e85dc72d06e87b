"""The rating page: one HTML document with its style and script, which loads nothing else."""

from __future__ import annotations

from functools import cache

import jinja2
from markupsafe import Markup


def render_page(*, title: str, rater: str, nonce: str) -> str:
    """The page. nonce: without it the browser runs neither style nor script of it."""
    environment = _environment()
    parts = {name: Markup(_source(f"rate.{name}")) for name in ("css", "js")}
    return environment.get_template("rate.html.jinja").render(title=title, rater=rater, nonce=nonce, **parts)


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("tunesmith.service.rating", "templates")
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _source(name: str) -> str:
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]
