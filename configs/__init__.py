"""Recipes: one YAML file a recipe, run by name."""
