"""Checks text, numbers and files from outside before anything uses them. No torch."""
