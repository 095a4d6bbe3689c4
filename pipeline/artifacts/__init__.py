"""What stages leave behind: a typed reader and writer for each noun."""
