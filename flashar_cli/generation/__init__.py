"""Images and tokens to disk, as they are made."""
