"""Read data files into records, and cut them into splits and batches."""
