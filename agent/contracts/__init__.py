"""Platform dialects, pure: nothing outside this room knows a platform by name."""
