"""Sources of embeddings that are read block by block, never all in memory."""
