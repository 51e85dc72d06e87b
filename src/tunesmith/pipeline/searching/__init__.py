"""Searching over a recipe's settings: every trial is a run, validation rows choose, the best is run to its verdict."""
