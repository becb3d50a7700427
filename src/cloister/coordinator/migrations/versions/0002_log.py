"""The log of receipts, and what a round leaves to be shown."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "log",
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("leaf", sa.LargeBinary(), nullable=False),
        sa.Column("receipt", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("place"),
        sa.UniqueConstraint("receipt"),
    )
    with op.batch_alter_table("round") as table:
        for name in ("total", "keylist", "consistency"):
            table.add_column(sa.Column(name, sa.String(length=64), nullable=True))
        table.add_column(sa.Column("opening", sa.LargeBinary(), nullable=True))
