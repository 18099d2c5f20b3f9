"""Commands for training: jobs, models, and the training service."""
