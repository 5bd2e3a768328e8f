"""Where the values of segments lie, and what a segment is."""
