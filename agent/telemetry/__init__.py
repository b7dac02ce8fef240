"""What the node says about itself and its functions: logs, metrics, metering."""
