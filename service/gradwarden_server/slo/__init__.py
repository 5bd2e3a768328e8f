"""Objectives: what is promised of trainings, how much of it is spent, and what was wasted. Pure."""
