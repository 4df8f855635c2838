"""What the readers of files give to the import: pieces of evidence, and what could not be read.

A reader is a generator of these; it raises nothing but OSError, and ConfigError where the whole file is not what it was
taken for.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Payload:
    """A serialised ExportTraceServiceRequest.

    Attributes:
        request: Its bytes.
        place: Which line, message or element of the file it began with, from 1.
    """

    request: bytes
    place: int


@dataclass(frozen=True, slots=True)
class Rows:
    """Record batches by table name, as they are stored.

    Attributes:
        batches: The rows.
        are_new: Whether none of them can be among the rows that the same source gave before.
    """

    batches: Mapping[str, pa.RecordBatch]
    are_new: bool = False


@dataclass(frozen=True, slots=True)
class Bad:
    """What could not be read.

    Attributes:
        reason: What was wrong, without the data.
        place: Where in the file, from 1; 0 where that has no meaning.
        unit: What is counted: line, message, trace, span, pod, file.
        count: How many.
    """

    reason: str
    place: int
    unit: str
    count: int = 1


Record = Payload | Rows | Bad
