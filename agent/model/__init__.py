"""What a function is and what is recorded about it: plain data, no I/O, no clock."""
