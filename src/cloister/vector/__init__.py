"""Room `vector`: layouts, queries, totals, digests and errors. Imports nothing of ours."""

from cloister.vector.bundle import canonical, digest, pack, unpack
from cloister.vector.errors import CloisterError
from cloister.vector.layout import Block, FixedPoint, Layout
from cloister.vector.query import Answer, Query
from cloister.vector.state import State
from cloister.vector.total import Total, flatten, open_buckets, open_total, unflatten

__all__ = [
    "Answer",
    "Block",
    "CloisterError",
    "FixedPoint",
    "Layout",
    "Query",
    "State",
    "Total",
    "canonical",
    "digest",
    "flatten",
    "open_buckets",
    "open_total",
    "pack",
    "unflatten",
    "unpack",
]
