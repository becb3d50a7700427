"""Which charges of the sites' privacy ledgers were seen: one that was put back to an older copy says smaller ones."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "charge",
        sa.Column("key", sa.LargeBinary(), primary_key=True),
        sa.Column("least", sa.BigInteger(), nullable=False),
    )
