"""Where an instance's files are: rootfs mounts, writable layers, volumes. Knows no containers."""
