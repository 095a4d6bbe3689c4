"""From a YAML file and `key=value` words to a checked configuration."""
