"""Where raw samples come from: one file a kind of source."""
