"""The passes of sharding that look at all samples: listing them, and planning their shards."""
