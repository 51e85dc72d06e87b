"""Trials over settings: spaces of values, samplers that ask for some, and the record of what came of them."""
