"""The verbs of the library, one module each: check, prepare, train, infer, score, blend."""
