"""The two losses that a head learns by (algorithms.md, section 3.1). Vectors in, one number out; torch only."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, normalize, relu

EQUAL = 0.999
"""Cosine of the base encoder from which on two questions are taken for the same one."""


def contrastive(a: torch.Tensor, b: torch.Tensor, right: torch.Tensor, margin: float) -> torch.Tensor:
    """Return the online contrastive loss of a batch: a and b of shape (n, k), right of shape (n,), a mean over pairs.

    By cosine distance. Only hard pairs count: right ones farther apart than the nearest wrong one, wrong ones nearer
    than the farthest right one; where the batch lacks the other label, those beyond the mean of their own.
    MeanCache's objective, as in sentence-transformers (OnlineContrastiveLoss).
    """
    distance = 1 - (normalize(a) * normalize(b)).sum(dim=1)
    near, far = distance[right], distance[~right]
    with torch.no_grad():
        reach = far.min() if far.numel() else near.mean()
        edge = near.max() if near.numel() else far.mean()
    pulled = near[near > reach].square().sum()
    pushed = relu(margin - far[far < edge]).square().sum()
    return (pulled + pushed) / len(distance)


def ranking(a: torch.Tensor, b: torch.Tensor, masked: torch.Tensor, scale: float) -> torch.Tensor:
    """Return multiple negatives ranking in both directions, of right pairs: a and b of shape (n, k).

    Each row's partner must be nearer than the partners of the others, but for those `masked`, shape (n, n).
    """
    near = scale * (normalize(a) @ normalize(b).T)
    near = near.masked_fill(masked & ~torch.eye(len(a), dtype=torch.bool), float("-inf"))
    partner = torch.arange(len(a))
    return (cross_entropy(near, partner) + cross_entropy(near.T, partner)) / 2


def kindred(a: torch.Tensor, b: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Return which rows of a batch are no sound negatives of each other, shape (n, n).

    Told by the group, and by the base encoder's unit vectors, a and b of shape (n, d): row i is spared row j where they
    share a question (which may stand in two groups, of two tenants), and where the encoder already finds them nearer
    than a right pair of them: then they may well be one topic that nobody has labelled (GISTEmbed, arXiv 2402.16829).
    Without all this a node of few topics learns to tell paraphrases apart.
    """
    across = a @ b.T
    own = across.diagonal()
    same = (group[:, None] == group[None, :]) | (across > own[:, None]) | (across > own[None, :])
    for near in (a @ a.T, b @ b.T):
        same = same | (near > own[:, None]) | (near > EQUAL)
    return same | (across > EQUAL) | (across.T > EQUAL)
