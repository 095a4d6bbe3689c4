"""The base of all packages: errors, whole files, random numbers by key, configuration, collective operations."""
