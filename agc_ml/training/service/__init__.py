"""Training service: jobs in a database, an HTTP interface, and the client for it."""
