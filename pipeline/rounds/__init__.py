"""The loop: which stages a run has, and running them."""
