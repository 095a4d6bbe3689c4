"""Where functions run: on Ray or in this process, with what they may use; and what is said meanwhile."""
