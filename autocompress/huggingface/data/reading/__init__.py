"""Read tables of text, lists in their cells, and lists of labels."""
