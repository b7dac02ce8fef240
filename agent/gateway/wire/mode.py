"""What a caller's connection does with the next bytes. What happens then is `client.py`'s."""

from typing import Final

HEAD: Final = 0
BODY: Final = 1
REPLY: Final = 2
"""A request is being answered: the one behind it waits."""
RAW: Final = 3
"""Another protocol passes through."""
LINGER: Final = 4
"""Nobody reads any more what comes."""
CLOSED: Final = 5
PASSED: Final = 6
"""On its way to another worker, which reads on."""
