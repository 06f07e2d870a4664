"""Slow, obvious twins: written from the definitions with loops, so that the fast code has something to equal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pf1_slow(labels: Sequence[int], scores: Sequence[float]) -> float:
    """The competition's definition, one breast after the other."""
    positives, soft_tp, soft_fp = 0, 0.0, 0.0
    for label, score in zip(labels, scores, strict=True):
        score = min(max(score, 0.0), 1.0)
        if label:
            positives += 1
            soft_tp += score
        else:
            soft_fp += score
    if soft_tp == 0:
        return 0.0
    precision, recall = soft_tp / (soft_tp + soft_fp), soft_tp / positives
    return 2 * precision * recall / (precision + recall)


def roc_auc_slow(labels: Sequence[int], scores: Sequence[float]) -> float:
    """How often a positive is above a negative, ties counting half, over all pairs."""
    wins, pairs = 0.0, 0
    for label, score in zip(labels, scores, strict=True):
        for other_label, other_score in zip(labels, scores, strict=True):
            if label and not other_label:
                pairs += 1
                wins += 1.0 if score > other_score else 0.5 if score == other_score else 0.0
    return wins / pairs


def confusion_slow(labels: Sequence[int], scores: Sequence[float], threshold: float) -> tuple[int, int, int, int]:
    """`(tp, fp, fn, tn)` of calling score >= threshold."""
    tp = fp = fn = tn = 0
    for label, score in zip(labels, scores, strict=True):
        called = score >= threshold
        tp, fp = tp + (called and label == 1), fp + (called and label == 0)
        fn, tn = fn + (not called and label == 1), tn + (not called and label == 0)
    return tp, fp, fn, tn


def f1_slow(labels: Sequence[int], scores: Sequence[float], threshold: float) -> float:
    """F1 of calling score >= threshold, from precision and recall."""
    tp, fp, fn, _ = confusion_slow(labels, scores, threshold)
    if tp == 0:
        return 0.0
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return 2 * precision * recall / (precision + recall)


def average_precision_slow(labels: Sequence[int], scores: Sequence[float]) -> float:
    """Sum over the distinct scores, from the top, of precision times the gain in recall."""
    area, last_recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        tp, fp, fn, _ = confusion_slow(labels, scores, threshold)
        recall = tp / (tp + fn)
        area += tp / (tp + fp) * (recall - last_recall)
        last_recall = recall
    return area


def resampled_slow(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> list:
    """The tables a patient bootstrap scores, rows written out as often as their patient is drawn."""
    names = sorted(set(groups))
    rng = np.random.default_rng(seed)
    tables = []
    for _ in range(resamples):
        drawn = [names[number] for number in rng.integers(0, len(names), size=len(names))]
        rows = [row for name in drawn for row in np.flatnonzero(groups == name)]
        tables.append((labels[rows].tolist(), scores[rows].tolist()))
    return tables
