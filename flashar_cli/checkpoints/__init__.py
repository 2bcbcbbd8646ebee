"""The one format of checkpoints, where they come from, and what they are."""
