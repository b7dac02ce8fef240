"""What runs: instances with their starts and ends, how many of them, and who has to make room.

Speaks neither HTTP nor gRPC and knows no call but by its place. The next room up is `calls`.
"""
