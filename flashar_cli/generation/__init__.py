"""Pictures and tokens to disk, as they are made."""
