"""Every error that the collector and the commands on top of it raise on purpose.

CollectorError
├── DecodeError            bytes that are not what they claim to be; carries the reason, never the data
├── ConfigError            a flag, a file or a setting that cannot be used          exit 2
├── StoreError             the database file cannot be opened, written or read
│   └── StoreBusyError     another process holds the file: ask its collector instead
│       └── StoreInUseError this process holds it itself
├── SourceUnreachableError no file there, or no collector answering                 exit 3
└── QueryError             the SQL was refused or failed                            exit 2
"""


class CollectorError(Exception):
    """The base: `str(error)` says what failed, on what, what was expected and what to try."""


class DecodeError(CollectorError):
    """Bytes that are not what they claim to be."""


class ConfigError(CollectorError):
    """A flag, file or setting that cannot be used."""


class StoreError(CollectorError):
    """The database file cannot be opened, written or read."""


class StoreBusyError(StoreError):
    """Another process holds the database file."""


class StoreInUseError(StoreBusyError):
    """This process has the database file open already."""


class StoreFullError(StoreError):
    """The writer's queue is full: retry after a moment."""


class SourceUnreachableError(CollectorError):
    """No file there, or no collector answering."""


class QueryError(CollectorError):
    """The SQL was refused or failed."""


def exit_code(error: CollectorError) -> int:
    """What a command exits with after this error: 3 where nothing could be reached, else 2."""
    return 3 if isinstance(error, SourceUnreachableError) else 2
