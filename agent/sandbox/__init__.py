"""From a version and ready slots to a running container, and back to nothing."""
