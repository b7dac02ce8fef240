"""The only door to netlink and nft: what a function's network is and what it may reach.

`network.Network` is the door; the other modules are behind it. Sockets and namespaces are made by
one thread that lives in the detached network namespace (`thread`). The next room up is `sandbox`.
"""
