"""Olive's commands and files, understood as recipes, exports and workflows; docs/olive.md says what becomes of each."""
