"""Scores to a decision: metrics, intervals, threshold, breasts, calibration, ensembles."""
