"""The road to a score with the `kaggle` program, of which nothing is believed because it ended with 0."""
