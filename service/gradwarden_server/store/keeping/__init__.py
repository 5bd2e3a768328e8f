"""Keeping the database small, whole and copied."""
