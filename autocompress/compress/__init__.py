"""Change a copy of a model: prune, factorise, quantise and distil it."""
