"""What a pair costs."""
