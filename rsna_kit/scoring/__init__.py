"""Scores to a decision: metrics, breasts, threshold, uncertainty."""
