"""A Kaggle kernel from its first minute to its verdict: what is attached, what it runs on, what may die."""
