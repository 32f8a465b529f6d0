"""How `mllm-tiny` is made: pictures, what is said about them, the model, and the loop."""
