"""The first version. A new store is made from `store.tables` and stamped with the newest revision; a migration is
needed only for what changes afterwards.
"""

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Nothing: `store.tables` at this revision is the baseline."""
