"""Bytes to stored pixels: the encoded frame and its decoders."""
