"""Exact budgets over groups, and draws of rows that meet them."""
