"""Measures of clusterings, selections and sets of features."""
