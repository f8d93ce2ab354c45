"""What callers teach: verdicts on served answers, kept as labelled pairs."""
