"""Options of a run's preferences as a data set."""

from stllava.config.base import Options


class DatasetOptions(Options):
    """What is written of the pairs, and what the card says that the run does not know."""

    include_images: bool = False
    """Put the images into the data set, as pixels without metadata; without it, only the SHA-256 of each image's file."""
    license: str | None = None
    """License of the data set as the hub calls it, such as cc-by-4.0; the card names none unless you do."""
    language: str | None = None
    """Code of the language of the texts, such as en; of phantoms it is known, else the card names none unless you do."""
