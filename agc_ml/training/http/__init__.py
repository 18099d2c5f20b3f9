"""HTTP server of the training service: limits on connections, problem details, logs."""
