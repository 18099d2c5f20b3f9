"""Work on a worker: jobs, chunks, and the outcomes that come back."""
