"""Draw the report of a run: figures, and the page that holds them."""
