"""Asyncio building blocks: named background tasks and cleanup that survives cancellation."""
