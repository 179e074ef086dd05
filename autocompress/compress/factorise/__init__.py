"""Replace weights by low-rank factors."""
