"""Runs read back: curves, heatmaps, samples."""
