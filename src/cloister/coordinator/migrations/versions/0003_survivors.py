"""Whom a void round was summed over: only they can be asked again."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("round") as table:
        table.add_column(sa.Column("survivors", sa.Text(), nullable=True))
