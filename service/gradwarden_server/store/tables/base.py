"""What all tables share."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Integer, MetaData

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows only in INTEGER primary keys; PostgreSQL needs the wider type.
RowId = BigInteger().with_variant(Integer, "sqlite")


def run_reference() -> Column[int]:
    """The row number of the run that a row belongs to and goes with."""
    return Column("run_id", RowId, ForeignKey("run.id", ondelete="CASCADE"), nullable=False)
