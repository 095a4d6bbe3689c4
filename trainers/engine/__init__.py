"""The train loop and what it drives: steps, optimizers, ranks, checkpoints."""
