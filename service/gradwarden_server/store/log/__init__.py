"""The frame log: from arrivals to batches and segments read back in order."""
