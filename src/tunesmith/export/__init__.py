"""Tuned models on their way out: one writer per format, all fed by one source.

`source` opens what was tuned, `writers` knows which function writes which kind, and each format has a room of its own.
Whether what was written is the tuned model is found out by `tunesmith.pipeline.exporting`, which alone gives an export
its name.
"""
