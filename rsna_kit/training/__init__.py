"""Batches to weights: what learns, how, and how it survives. The only room that changes weights."""
