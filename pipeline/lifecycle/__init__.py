"""The life of a run after learning: forgetting a domain, and measuring what that changed."""
