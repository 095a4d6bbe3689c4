"""What samples are: one file a kind, with all that the stages and the report must know of it."""
