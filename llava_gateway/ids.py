"""Names for requests and answers: unlikely to come twice, and no secret."""

from random import getrandbits


def new_id() -> str:
    """32 hexadecimal digits, without asking the system for randomness each time."""
    return f"{getrandbits(128):032x}"
