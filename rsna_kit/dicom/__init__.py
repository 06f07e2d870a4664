"""Bytes to stored pixels: the encoded frame and the ladder of decoders."""
