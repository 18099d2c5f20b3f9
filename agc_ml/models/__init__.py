"""Machine learning in processors: models pinned to their bytes, scored in batches."""
