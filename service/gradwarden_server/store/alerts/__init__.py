"""Alerts and their messages: who is told of what, and what holds it back."""
