"""Reports for people: tables on the console, pictures."""
