"""The learning system: from streams of images to a stored, measured and tracked model."""
