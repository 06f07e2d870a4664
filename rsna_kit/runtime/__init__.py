"""What every room stands on: errors, lazy imports, events, the clock, the hardware, whole files."""
