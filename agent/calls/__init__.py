"""One version as its callers see it: leases, waiting calls, jobs. `ports.py` is what doors use."""
