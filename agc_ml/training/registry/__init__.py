"""Registry of trained models: an MLflow server, versions, promotion and rollback."""
