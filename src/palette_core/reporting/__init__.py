"""What happened, for people: tables on the console, pictures."""
