"""What is known of scores and pictures at home: comparisons, subgroups, maps. Numbers, no pages."""
