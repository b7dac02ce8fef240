"""What a container's file system is made of: overlay mounts, writable layers, volumes.

`rootfs` mounts, `slots` leases writable layers, `volumes` says what may be bound. The calls
themselves are in `linux`. The next room up is `sandbox`.
"""
