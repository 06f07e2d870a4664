"""Scores and pictures → a page that shows them."""
