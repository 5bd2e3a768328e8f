"""The wire contract between trainer and service, version 1. Standard library only.

NaN and Inf survive bit for bit, in the binary form and in the plain one.
"""

from gradwarden.wire.binary import MAGIC, MEDIA_TYPE, Codec, decode, encode
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
    QUANTITIES,
    VERSION,
    Batch,
    Capture,
    Event,
    Frame,
    StreamKey,
)
from gradwarden.wire.plain import from_json, to_json

__all__ = [
    "DEFAULT_LIMITS",
    "MAGIC",
    "MEDIA_TYPE",
    "QUANTITIES",
    "VERSION",
    "Batch",
    "Capture",
    "Codec",
    "Event",
    "Frame",
    "Layout",
    "Limits",
    "Malformed",
    "Parameter",
    "StreamKey",
    "TooLarge",
    "UnsupportedVersion",
    "WireError",
    "decode",
    "encode",
    "from_json",
    "is_identifier",
    "merge",
    "missing",
    "to_json",
]
