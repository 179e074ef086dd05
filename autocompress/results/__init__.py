"""Hold what a search returns and leaves on disk."""
