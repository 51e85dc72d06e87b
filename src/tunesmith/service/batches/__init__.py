"""Batches: many requests in a file, answered beside the server's other work."""
