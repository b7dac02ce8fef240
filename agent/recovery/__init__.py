"""What runs is made what is wanted: at every start, on a timer, and beside other workers."""
