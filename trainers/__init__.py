"""Training of encoders.

Folders, each importing only those before it: `data` (from shards to views), `models` (encoders and heads), `methods` (one file
each), `evaluation` (of frozen features), `engine` (the train loop; begin with `engine.train`). Below them are `ranks`,
`schedules` and `output_files`. Runs under torchrun, under Ray or in one process, and imports neither Ray nor the pipeline.
"""
