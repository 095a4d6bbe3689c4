"""Exact budgets over groups, and drawing rows by them."""
