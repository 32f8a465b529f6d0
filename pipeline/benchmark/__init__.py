"""Methods side by side: what is compared, what it costs, what came out, and how sure that is."""
