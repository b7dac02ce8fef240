"""The process house: how an unprivileged user gets namespaces, daemons and a worker that stays up.

Standard library only, and nothing of the rooms above: this code runs before and beside everything
else, must start in milliseconds and must be able to replace itself while calls go on.
"""
