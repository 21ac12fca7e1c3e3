"""Reports for people: on the console, and in files, whose suffix picks the format."""
