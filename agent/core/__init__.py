"""The rules, pure: they take `now` and plain values and return what should happen."""
