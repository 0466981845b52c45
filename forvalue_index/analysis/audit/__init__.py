"""Which training rows are likely wrong."""
