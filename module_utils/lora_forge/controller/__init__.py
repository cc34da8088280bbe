"""What action plugins alone need."""
