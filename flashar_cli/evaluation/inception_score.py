"""The Inception Score of predicted class probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SPLIT = 5000  # images whose score is computed at once


def inception_score(logits: NDArray[np.floating], split: int = SPLIT) -> float:
    """exp(mean KL(p(y | x), p(y))) of logits [N, C], averaged over parts of ``split`` images; from 1 to C.

    Source: Salimans et al. 2016 (arXiv 1606.03498); the parts as in openai/guided-diffusion evaluations/evaluator.py.
    """
    log_p = logits.astype(np.float64)
    log_p -= log_p.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    scores = []
    for start in range(0, len(log_p), split):
        part = log_p[start : start + split]
        marginal = np.log(np.exp(part).mean(axis=0))
        scores.append(np.exp((np.exp(part) * (part - marginal)).sum(axis=1).mean()))
    return float(np.mean(scores))
