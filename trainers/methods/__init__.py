"""Self-supervised methods: one file each, from its paper; `method` is what all of them keep."""
