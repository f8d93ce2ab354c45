"""Who may change policy, what was changed, and what is in force."""
