"""Answering: requests of the dialects become questions to the engine, and its pieces become their objects."""
