"""Encoders and how they learn.

Read in this order: `config`, `train` (the loop), `methods` (one file each), `views` and `loader` (what a step sees),
`encoders`, `evaluate`. Works under torchrun, under Ray or in one process; knows none of them.
"""
