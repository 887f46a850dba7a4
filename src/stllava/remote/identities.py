"""What tells of this machine or of who works on it: their names, and the folders that their files lie in."""

import getpass
import re
import socket
from pathlib import Path

SHORTEST = 4
"""Letters of a user's or machine's name that are looked for: shorter ones stand in any text."""
EVERYBODY = frozenset({"root", "user", "ubuntu", "localhost"})
"""Names that tell nothing of anybody."""


def names_here() -> "re.Pattern[str] | None":
    """Finds the names of the machine and of its user, as words of their own; None where they tell nothing."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = ""  # In a container, say, a number that has no name.
    names = {name for name in (user, socket.gethostname()) if len(name) >= SHORTEST} - EVERYBODY
    return re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in sorted(names))) if names else None


def identity_in(text: str) -> str | None:
    """The first folder of this machine, or name of it or its user, that a text holds."""
    places = (str(place) for place in (Path.home(), Path.cwd()) if len(place.parts) > 1)
    found = next((place for place in places if f"{place}/" in f"{text}/"), None)
    if found is None and (names := names_here()) is not None and (name := names.search(text)) is not None:
        found = name[0]
    return found
