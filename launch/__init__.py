"""How a run is asked for: the command line (`cli`), the configuration file (`config`), provenance and the doctor."""
