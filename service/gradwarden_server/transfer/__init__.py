"""Whole runs as files, both ways: what they are made of, and how each format says it.

Every format carries the same: one :class:`~gradwarden_server.transfer.head.Head`, then batches
of frames in the order in which the service took them. ``write`` of a format yields bytes as it
goes; ``read`` yields batches of one frame each. Neither holds a run in memory.
"""
