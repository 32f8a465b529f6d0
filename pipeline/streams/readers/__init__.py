"""One file a reader: each registers itself by name (see `pipeline.streams.registry`)."""
