"""Hold the results of a search: measurements, fronts, limits and their files."""
