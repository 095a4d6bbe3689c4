"""SAS: the rows most similar to the rest of their latent class, which contribute most to contrastive learning.

Joshi and Mirzasoleiman, "Data-Efficient Contrastive Self-supervised Learning: Most Beneficial Examples for Supervised
Learning Contribute the Least", ICML 2023.
"""

import numpy as np
import torch
from torch import Tensor

from curation.base.device import default_device
from curation.base.errors import ConfigError
from curation.distance.exact import Grid, for_products
from curation.embeddings.source import groups_of
from curation.sampling.allocation import apportion
from curation.selectors.config import SasConfig
from curation.selectors.selection import Pool, Selection

_HELD = 2**25
"""Similarities held at once."""
_PROPOSED = 256
"""Rows whose similarities to all others are computed at once, as likely next picks."""


def select(config: SasConfig, pool: Pool, budget: int, *, rng_key: int) -> Selection:  # noqa: ARG001  the signature of all selectors
    """The same share of the available rows of every latent class, chosen greedily (`greedy`).

    Latent classes are the clusters of a level, and each row represents its augmentations, as in the paper where a proxy
    encoder is well aligned. The paper may remove more rows of a class, by the double greedy algorithm; here the budget is
    always met.
    """
    source, depth = pool.need_embeddings(), len(pool.hierarchy.levels)
    if (config.level or 1) > depth:
        raise ConfigError(f"The level of sas is {config.level}, but there are {depth} levels of clusters. Set 1 to {depth}.")
    level = config.level or depth
    labels = pool.hierarchy.labels(level)
    rows = pool.available_rows()
    sizes = np.bincount(labels[rows], minlength=pool.hierarchy.levels[level - 1].num_clusters)
    shares = apportion(sizes, sizes, min(budget, len(rows)))
    chosen = [rows[(shares == sizes)[labels[rows]]]]
    # Embeddings are read only for classes that give some but not all of their rows.
    partial = np.flatnonzero((shares > 0) & (shares < sizes))
    rows = rows[np.isin(labels[rows], partial)]
    rows = rows[np.argsort(labels[rows], kind="stable")]
    offsets = np.concatenate([[0], np.cumsum(sizes[partial])])
    device = default_device()
    for number, members in enumerate(groups_of(source, rows, offsets)):
        picked = greedy(torch.from_numpy(members).to(device), int(shares[partial[number]]))
        chosen.append(rows[offsets[number] + picked])
    return Selection.of(np.concatenate(chosen), "sas")


def greedy(rows: Tensor, num: int) -> np.ndarray:
    """(num,) indices into `rows` (M, D) in the order picked: each pick raises F(S) most, the first of equals.

    F(S) is the sum of sim(i, j) over i not in S and j in S, where sim is the cosine similarity, or 0 where that is negative.
    Adding e to S adds its similarity to all rows outside S and removes its similarity to the rows in S:
    F(S + e) - F(S) = sum of sim(e, i) over i other than e - 2 * sum of sim(e, j) over j in S.
    """
    unit = for_products(torch.nn.functional.normalize(rows.double()))
    grid = Grid(1.0, len(rows))

    def similarity(queries: Tensor) -> Tensor:
        """(B, M): similarity of unit vectors (B, D) to all rows, rounded so that they add up exactly in any order."""
        return grid((queries @ unit.T).clamp_(min=0))

    block_rows = max(1, _HELD // len(rows))
    gain = torch.cat([similarity(block).sum(1) for block in unit.split(block_rows)])
    gain -= grid((unit * unit).sum(1))
    picked: list[int] = []
    while len(picked) < num:
        # Gains only fall, so the next picks are likely among the largest gains now: one product serves many of them.
        proposed = gain.topk(min(_PROPOSED, block_rows, len(rows))).indices
        proposed[0] = gain.argmax()
        similarities = similarity(unit[proposed])
        position = {row: i for i, row in enumerate(proposed.tolist())}
        while len(picked) < num and (best := int(gain.argmax())) in position:
            picked.append(best)
            gain -= 2 * similarities[position[best]]
            gain[best] = -torch.inf
    return np.array(picked, dtype=np.int64)
