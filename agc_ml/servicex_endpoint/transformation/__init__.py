"""Transformations: workers that read files, apply a query and write the results."""
