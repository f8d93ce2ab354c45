"""What operators see of each category and backend, and what the log of lookups recommends changing."""
