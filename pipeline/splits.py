"""The splits of a sample index."""

POOL, HELD_OUT, QUERY = SPLITS = ("train", "test", "query")
"""What may be selected and trained on, what is measured on, and examples of what a selector should look for."""
