"""index_info.live: how many samples are live, so that a reader notices a lost row."""

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    live = sa.Column("live", sa.BigInteger(), server_default=sa.text("0"), nullable=False)
    op.add_column("index_info", live)
    op.execute(
        "UPDATE index_info SET live = (SELECT count(*) FROM samples WHERE removed_at IS NULL)"
    )


def downgrade() -> None:
    op.drop_column("index_info", "live")
