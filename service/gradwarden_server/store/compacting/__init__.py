"""From the log to segments, and back."""
