"""Getting events to the workers: replicas, ways to them, and what is known of files."""
