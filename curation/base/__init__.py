"""What every package uses: errors, whole files, random numbers by key, configuration."""
