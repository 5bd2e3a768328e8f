"""The wire contract between trainer and service, version 2. Standard library only.

NaN and Inf survive bit for bit, in the binary form and in the plain one.
"""

from gradwarden.wire.binary import MAGIC, MEDIA_TYPE, Codec, Message, check, decode, encode
from gradwarden.wire.checks import (
    DEFAULT_LIMITS,
    Limits,
    Malformed,
    TooLarge,
    UnsupportedVersion,
    WireError,
    is_identifier,
)
from gradwarden.wire.intervals import merge, missing
from gradwarden.wire.layout import Layout, Parameter
from gradwarden.wire.message import (
    READABLE,
    VERSION,
    Batch,
    Capture,
    Event,
    Frame,
    Header,
    StreamKey,
)
from gradwarden.wire.plain import from_json, to_json
from gradwarden.wire.quantity import (
    CHECKSUMS,
    COLUMNS,
    HISTOGRAM,
    JOINS,
    QUANTITIES,
    ROOT_WORDS,
    SLICES,
    SLOW,
    histogram_edges,
)

__all__ = [
    "CHECKSUMS",
    "COLUMNS",
    "DEFAULT_LIMITS",
    "HISTOGRAM",
    "JOINS",
    "MAGIC",
    "MEDIA_TYPE",
    "QUANTITIES",
    "READABLE",
    "ROOT_WORDS",
    "SLICES",
    "SLOW",
    "VERSION",
    "Batch",
    "Capture",
    "Codec",
    "Event",
    "Frame",
    "Header",
    "Layout",
    "Limits",
    "Malformed",
    "Message",
    "Parameter",
    "StreamKey",
    "TooLarge",
    "UnsupportedVersion",
    "WireError",
    "check",
    "decode",
    "encode",
    "from_json",
    "histogram_edges",
    "is_identifier",
    "merge",
    "missing",
    "to_json",
]
