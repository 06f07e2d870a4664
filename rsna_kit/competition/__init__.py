"""What Kaggle hands over and wants back: paths, tables, folds, submission."""
