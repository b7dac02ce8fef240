"""What the node says about itself and its functions: logs, events, metrics."""
