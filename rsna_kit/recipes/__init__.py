"""The stories of the kit, one module each: check, prepare, train, infer, score."""
