"""Getting events to the workers: replicas, routes to them, and ServiceX."""
