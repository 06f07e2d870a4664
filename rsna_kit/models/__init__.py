"""Batches to logits: classifier, starting weights, training, bundle."""
