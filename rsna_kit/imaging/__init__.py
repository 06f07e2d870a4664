"""Stored pixels to the image a model sees: window, breast box, the one composition."""
