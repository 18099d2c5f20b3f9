"""Compiled kernels on flat arrays: what an analysis does event by event, without a Python loop."""
