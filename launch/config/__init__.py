"""Configuration of a run: recipes and YAML files, overrides, how they are merged, and their validation."""
