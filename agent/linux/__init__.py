"""What is said to the kernel by number or read from /proc; the standard library only."""
