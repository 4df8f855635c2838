"""What a collector's query API and its client agree on, apart from both: neither loads what the other needs."""

from typing import Final

ARROW_STREAM: Final = "application/vnd.apache.arrow.stream"
"""The answer's media type: an Arrow IPC stream."""

QUERY_ID: Final = "x-query-id"
"""The request header that names a query, so that another request can interrupt it."""

QUERY_PATH: Final = "/api/v1/query"
STATUS_PATH: Final = "/api/v1/status"
