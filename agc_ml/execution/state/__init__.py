"""State of a run: accounting of chunks, checkpoints, provenance and caches."""
