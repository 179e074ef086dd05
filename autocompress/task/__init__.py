"""Hold what the user brings: model, batches, metric."""
