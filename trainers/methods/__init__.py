"""Training methods, one file each, from its paper; `method` has their interface, `build` their table."""
