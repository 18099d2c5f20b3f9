"""Execution of runs: inspection of files, processing of chunks, reduction of outputs."""
