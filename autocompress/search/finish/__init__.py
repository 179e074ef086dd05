"""Turn the best trials into files that were run."""
