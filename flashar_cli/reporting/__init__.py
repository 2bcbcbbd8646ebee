"""What models and runs show of themselves: facts, a live view, event files, and a report that needs no network."""
