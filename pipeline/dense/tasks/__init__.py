"""The kinds of dense tasks, one a file."""
