"""Tunesmith: fine-tunes language models and proves whether it was worth it."""
