"""What runs on a trainer's own Python, 3.9 or newer: its GPU, its environment, its runs."""
