"""Statistical analysis: workspaces, likelihoods, fits, predictions and impacts."""
