"""What a container's file system is made of: overlay mounts, writable layers, volumes.

`rootfs` mounts, `slots` leases writable layers, `volumes` says what may be bound. The only room
that calls mount(2). The next room up is `sandbox`.
"""
