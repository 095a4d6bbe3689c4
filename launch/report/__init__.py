"""The report: one page about a run, a file a section."""
