"""Judge candidates: races on the validation split, recovery."""
