"""PromQL over what is stored: which series there are, and where each is read."""
