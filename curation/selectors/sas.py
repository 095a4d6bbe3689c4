"""SAS: the rows that are most like the rest of their latent class, which contrastive learning gains most from.

Joshi and Mirzasoleiman, "Data-Efficient Contrastive Self-supervised Learning: Most Beneficial Examples for Supervised
Learning Contribute the Least", ICML 2023.
"""

import numpy as np
import torch
from torch import Tensor

from curation.base.errors import ConfigError
from curation.distance.exact import Grid, for_products
from curation.distance.nearest import default_device
from curation.embeddings.source import groups_of
from curation.sampling.allocation import apportion
from curation.selectors.config import SasConfig
from curation.selectors.selection import Pool, Selection

_HELD = 2**25
"""Similarities held at once."""
_PROPOSED = 256


def select(config: SasConfig, pool: Pool, budget: int, *, rng_key: int) -> Selection:  # noqa: ARG001  as all are called
    """The same share of the available rows of every latent class, chosen greedily (`greedy`).

    Latent classes are the clusters of a level, and a row stands for its augmentations, as in the paper where a proxy encoder
    is well aligned. The paper may thin out a class once more, by double greedy; here the budget is met even where it costs.
    """
    source, depth = pool.need_embeddings(), len(pool.hierarchy.levels)
    if (config.level or 1) > depth:
        raise ConfigError(f"select.level is {config.level}, but there are {depth} levels of clusters. Set 1 to {depth}.")
    level = config.level or depth
    labels = pool.hierarchy.labels(level)
    rows = pool.available_rows()
    sizes = np.bincount(labels[rows], minlength=pool.hierarchy.levels[level - 1].num_clusters)
    shares = apportion(sizes, sizes, min(budget, len(rows)))
    chosen = [rows[(shares == sizes)[labels[rows]]]]
    # Of classes that go in whole or not at all nothing need be read.
    asked = np.flatnonzero((shares > 0) & (shares < sizes))
    rows = rows[np.isin(labels[rows], asked)]
    rows = rows[np.argsort(labels[rows], kind="stable")]
    offsets = np.concatenate([[0], np.cumsum(sizes[asked])])
    device = default_device()
    for number, members in enumerate(groups_of(source, rows, offsets)):
        picked = greedy(torch.from_numpy(members).to(device), int(shares[asked[number]]))
        chosen.append(rows[offsets[number] + picked])
    return Selection.of(np.concatenate(chosen), "sas")


def greedy(rows: Tensor, num: int) -> np.ndarray:
    """(num,) places in `rows` (M, D), in the order picked, each the one that raises F(S) most, the first of equals.

    F(S) is the sum of sim(i, j) over i not in S and j in S, sim the cosine or 0 if that is negative. Taking e in adds its
    similarity to all that stay out and removes its similarity to those that were in already:
    F(S + e) - F(S) = sum of sim(e, i) over i other than e - 2 * sum of sim(e, j) over j in S.
    """
    unit = for_products(torch.nn.functional.normalize(rows.double()))
    grid = Grid(1.0, len(rows))

    def similar(some: Tensor) -> Tensor:
        """(B, M), rounded so that they add up exactly in any order."""
        return grid((some @ unit.T).clamp_(min=0))

    at_once = max(1, _HELD // len(rows))
    gain = torch.cat([similar(some).sum(1) for some in unit.split(at_once)])
    gain -= grid((unit * unit).sum(1))
    picked: list[int] = []
    while len(picked) < num:
        # Gains only fall, so the next picks are likely among those now largest: one product serves many of them.
        proposed = gain.topk(min(_PROPOSED, at_once, len(rows))).indices
        proposed[0] = gain.argmax()
        likeness = similar(unit[proposed])
        place = {row: i for i, row in enumerate(proposed.tolist())}
        while len(picked) < num and (best := int(gain.argmax())) in place:
            picked.append(best)
            gain -= 2 * likeness[place[best]]
            gain[best] = -torch.inf
    return np.array(picked, dtype=np.int64)
