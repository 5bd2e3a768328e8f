"""The parts of ``ingest.py``: the data, the client, our service, and each tool beside it."""
