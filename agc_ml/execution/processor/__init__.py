"""Processors in runs: loading, code identity, declared files and outputs."""
