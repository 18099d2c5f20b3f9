"""Processes that run foreign code: their limits, and their end."""
