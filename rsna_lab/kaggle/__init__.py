"""From this checkout to a scored submission: what scripts/push, scripts/build and scripts/rehearse share."""
