"""From a run's findings to one story: symptom, cause, evidence, first safe action. Pure."""
