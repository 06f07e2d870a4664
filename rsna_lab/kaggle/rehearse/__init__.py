"""A kernel and folders that stand for its inputs → what Kaggle would say of it, and of its scoring run."""
