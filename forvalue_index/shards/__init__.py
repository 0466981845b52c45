"""A sharded index: one vectoriser, a manifest and N ordinary indexes, in one process."""
