"""Grafana's dashboards over gradwarden's own Prometheus API: ``python -m dashboards.boards``.

Their data source is the service itself, uid ``gradwarden``: layers, ranks and alerts are read
from it as they are, not from a scrape.
"""
