"""Pictures to logits: networks, starting weights, bundles, ensembles, maps."""
