"""The sections of the page, in files named for what they show."""
