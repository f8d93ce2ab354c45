"""What must not be kept: personal data in questions and answers."""
