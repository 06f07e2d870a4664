"""The hidden run of 32,000 files in simulated time."""
