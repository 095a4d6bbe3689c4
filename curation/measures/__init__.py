"""What a clustering, a selection or a set of features is worth."""
