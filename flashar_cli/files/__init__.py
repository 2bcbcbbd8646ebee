"""Writes files whole or not at all, and replaces only what is of the same kind; reads and writes files of tensors."""
