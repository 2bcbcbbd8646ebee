"""What a run shows of itself: a live view, event files, and a report that needs no network."""
