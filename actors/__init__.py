"""What works with Ray or for a person at a terminal."""
