"""One file a stage, and `stage`, the contract that all of them keep."""
