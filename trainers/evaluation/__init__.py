"""Evaluation of frozen features: nearest neighbours, linear probes, and measures without labels."""
