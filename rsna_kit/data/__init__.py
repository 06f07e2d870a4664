"""Images to batches: shards, sampling, augmentation, batches."""
