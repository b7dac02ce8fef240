"""The node as one object: what the scheduler's door asks it, what it says about itself."""
