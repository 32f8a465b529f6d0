"""What people submit: each file is one job and reads like a story."""
