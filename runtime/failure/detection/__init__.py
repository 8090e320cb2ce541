"""Detection: ranks that ended, that do not get on, or that began something else."""
