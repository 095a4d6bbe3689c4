"""What frozen features are worth: nearest neighbours, probes, and measures without labels."""
