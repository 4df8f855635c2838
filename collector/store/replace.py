"""A small table's rows for others, all at once."""

import duckdb
import pyarrow as pa

from collector.errors import StoreError
from collector.store.database import Store
from collector.store.failures import message
from collector.store.insert import ARRIVED
from collector.store.pending import check_fits


def replace_rows(store: Store, table: str, rows: pa.RecordBatch) -> None:
    """Make these the only rows of a small table, in one transaction; raises StoreError.

    Only before the table is written by anyone else: two transactions that change the same rows conflict.
    """
    check_fits(table, rows)
    cursor = store.cursor()
    try:
        cursor.begin()
        cursor.execute(f"DELETE FROM {table}")
        cursor.register(ARRIVED, rows)
        cursor.execute(f"INSERT INTO {table} SELECT * FROM {ARRIVED}")
        cursor.commit()
    except duckdb.Error as e:
        raise StoreError(f"{store.path}: {table} could not be replaced: {message(e)}") from e
    finally:
        cursor.close()  # a transaction that is still open rolls back
