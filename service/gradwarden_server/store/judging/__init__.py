"""What judging needs and leaves: who judges a run and how far, groups of rules."""
