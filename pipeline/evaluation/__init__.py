"""How good is it: figures, the report and its pictures."""
