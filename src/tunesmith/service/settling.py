"""Keeping Python's collector of cyclic garbage from holding up every answer for a fifth of a second."""

from __future__ import annotations

import gc


def settle() -> None:
    """Let collections leave alone what is in memory now: modules, routes and models stay as long as the server does.

    A full collection looks at every object, and a list of a thousand files makes enough new ones to begin it.
    """
    gc.collect()
    gc.freeze()
