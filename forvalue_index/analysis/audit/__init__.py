"""Which training rows are likely wrong, and why."""
