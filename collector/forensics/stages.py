"""Intermediate results that a statement computes once, however often it uses them: WITH name AS MATERIALIZED (...).

Ibis writes a table out wherever it is used. A detector that uses its calls ten times, each of them made of ten uses of the spans,
becomes a statement of 250 kB that takes an engine longer to bind than to answer. A stage is written once and has a name, so the
statement grows with the number of its parts, and people can read it.

    table = staged("calls", expression)     # composable like any other table
    compile_sql(table.filter(...))          # WITH calls AS MATERIALIZED (...) SELECT ...

Readers are read-only and cannot create tables; a common table expression is none.
"""

from collections.abc import Mapping
from typing import Any

import ibis
import ibis.expr.operations as ops
import ibis.expr.schema as sch
import ibis.expr.types as ir


class Stage(ops.PhysicalTable):  # type: ignore[misc]
    """A relation that is computed once and read by name."""

    parent: ops.Relation

    @property
    def schema(self) -> Any:
        """That of what it computes."""
        return self.parent.schema


class Given(ops.PhysicalTable):  # type: ignore[misc]
    """A relation whose statement is known; it is written where it is used, not computed apart."""

    schema: sch.Schema
    sql: str


def given(name: str, sql: str, columns: Mapping[str, str]) -> ir.Table:
    """A statement as a table to go on from, with its columns: what was compiled before is not compiled again."""
    return Given(name=name, schema=sch.Schema(dict(columns)), sql=sql).to_expr()


def staged(name: str, table: ir.Table) -> ir.Table:
    """The table, to be computed once. Equal tables of one name are one stage; of two unequal ones the second is renamed."""
    return Stage(name=name, parent=table.op()).to_expr()


def once(name: str, table: ir.Table, *key: str) -> ir.Table:
    """The rows with each key once: of those that came more often, any one."""
    return without_copies(table, repeated(name, table, *key), *key)


def repeated(name: str, table: ir.Table, *columns: str) -> ir.Table:
    """A stage with the values of these columns that more than one row has."""
    counted = table.group_by(list(columns)).agg(copies=table.count())
    return staged(f"{name}_repeated", counted.filter(counted.copies > 1).select(*columns))


def without_copies(table: ir.Table, among: ir.Table, *key: str) -> ir.Table:
    """The rows with each key once, if no key but those that are `among` these came more often.

    Repeated keys are rare, and keeping the first of every group would carry all columns of all rows through an aggregate: that took
    a third of the time of the largest statement. So the keys are counted, and only rows of the few that repeat are compared.
    """
    columns = list(among.columns)
    single = table.anti_join(among, columns)
    return single.union(table.semi_join(among, columns).distinct(on=list(key), keep="first"))


def compile_stages(expression: ir.Table, dialect: str = "duckdb") -> str:
    """The expression as one SELECT statement of the dialect, on one line, its stages before it."""
    stages: dict[str, ops.Relation] = {}
    last = expression.op().replace(_cutter(stages)).to_expr()
    body = _select(last, dialect)
    if not stages:
        return body
    ahead = ", ".join(f"{name} AS {_written(node, dialect)}" for name, node in stages.items())
    # What Ibis itself writes before a SELECT stands inside the brackets of a stage; of the last one it goes on the list.
    return f"WITH {ahead}, {body.removeprefix('WITH ')}" if body.startswith("WITH ") else f"WITH {ahead} {body}"


def _written(node: ops.Relation, dialect: str) -> str:
    known = isinstance(node, Given)
    how = ("NOT MATERIALIZED " if known else "MATERIALIZED ") if dialect == "duckdb" else ""
    return f"{how}({node.sql if known else _select(node.to_expr(), dialect)})"


def _cutter(stages: dict[str, ops.Relation]) -> Any:
    """What replaces each stage by its name and writes it down after those that it needs: Ibis replaces leaves first."""

    def cut(node: Any, changed: Any) -> Any:
        if isinstance(node, Stage | Given):
            parent = node if isinstance(node, Given) else (changed or {}).get("parent", node.parent)
            name, serial = node.name, 1
            while stages.setdefault(name, parent) != parent:
                serial += 1
                name = f"{node.name}_{serial}"
            return ops.UnboundTable(name=name, schema=parent.schema)
        return node.__recreate__(changed) if changed else node

    return cut


def _select(expression: ir.Table, dialect: str) -> str:
    return str(ibis.to_sql(expression, dialect=dialect, pretty=False))
