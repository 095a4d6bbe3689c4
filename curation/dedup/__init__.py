"""Near-duplicates: finding the pairs, and choosing which rows of a group to keep.

Three tests of similarity, from strict to loose: equal bytes, perceptual hashes a few bits apart (`hashing`), embeddings within
a radius (`neighbours`). Each gives edges between rows; edges become groups (`components`), and a rule says which rows of a
group are dropped (`rules`). Edges carry their distance, so another threshold or another rule needs no second search.
"""
