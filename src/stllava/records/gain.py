"""How much an image speaks for an answer."""

from stllava.records.record import Keyed


class ImageGain(Keyed):
    """Of the answers to one question, how much likelier each is with the image than with a black one."""

    id: str
    """Hash of answers id and policy."""
    answers_id: str
    """The answers."""
    gains: tuple[float | None, ...]
    """log p(answer | image) − log p(answer | black image) of each completion, in nats; None of one that was cut off or does not
    fit."""
    policy: str
    """Fingerprint of the weights that both are of."""
