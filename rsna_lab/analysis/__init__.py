"""What is known of scores and pictures at home: subgroups and maps. Numbers, no pages."""
