"""Check and evaluate models without changing them."""
