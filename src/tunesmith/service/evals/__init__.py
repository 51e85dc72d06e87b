"""Evals: a schema of rows, graders, and runs of both over a model's answers."""
