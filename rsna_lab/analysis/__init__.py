"""What is known of scores, pictures and folds at home: comparisons, subgroups, maps, duplicates. Numbers, no pages."""
