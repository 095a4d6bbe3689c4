"""Where bytes are, and who may write them."""
