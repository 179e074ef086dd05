"""Turn models that read pictures and texts into ones whose graph fits all batches."""
