"""Where embeddings come from, block by block, never all in memory."""
