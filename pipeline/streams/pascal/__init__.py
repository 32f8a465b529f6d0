"""PASCAL-Context for several tasks: what its files hold and how its benchmark reads them."""
