"""From a checkout to a score on Kaggle: what is sent, what became of it, and nothing twice."""
