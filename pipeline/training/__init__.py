"""One stage of training: what is optimised, on which rows, and on which machines."""
