"""Data: micro-batches fetched from the caller's loader, weighed, compared, streamed to a run."""
