"""Plans in and out: files, pictures, traces, and the formats of other programs."""
