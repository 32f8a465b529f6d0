"""A learned model away from its run: in MLflow, as a folder to hand on, as ONNX."""
