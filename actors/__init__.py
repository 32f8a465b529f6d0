"""Long-lived Ray processes."""
