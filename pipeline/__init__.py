"""The learning system: streams, model, identifiers, training, methods, evaluation, store, tracking."""
