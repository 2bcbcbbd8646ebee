"""Raster against diagonal decoding on one machine, with the floor that machine's own rates allow."""
