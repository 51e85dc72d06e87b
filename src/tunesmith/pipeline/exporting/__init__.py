"""Exports of a run: written, opened again, compared with the tuned model, and scored on the frozen test rows.

`flow` tells it from beginning to end; `verify` holds the checks, `bounds` what they allow.
"""
