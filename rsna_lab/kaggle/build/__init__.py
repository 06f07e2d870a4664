"""A dataset's name → its folder, ready to upload: same commit, same bytes, and nothing that must stay at home."""
