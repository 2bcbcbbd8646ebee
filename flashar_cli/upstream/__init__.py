"""Upstream files: reading them, telling what they hold, and translating them into checkpoints and back."""
