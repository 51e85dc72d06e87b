"""Workflows: a chain of steps from rows to exports, each step cached, with a search over their settings."""
