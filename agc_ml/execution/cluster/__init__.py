"""Clusters and executors of tasks; the only place that knows Dask."""
