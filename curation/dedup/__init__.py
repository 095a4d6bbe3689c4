"""Finding rows that say the same, and choosing which of them to keep.

A ladder of ever looser likeness: equal bytes, perceptual hashes a few bits apart (`hashing`), embeddings within a radius
(`neighbours`). Every rung gives edges between rows; edges become groups (`components`), and a rule says which rows of a
group are dropped (`rules`). Edges carry their distance, so another threshold or another rule needs no second search.
"""
