"""What can go wrong through no fault of the code: one class the user sees, one for a single bad item."""

from collections.abc import Callable


class StllavaError(Exception):
    """A user error: says what was found, what was expected and what to do; the CLI prints it and exits with 2."""

    def __init__(self, found: str, *, expected: str, remedy: str) -> None:
        super().__init__(f"{found}; expected {expected}. {remedy}")

    def __reduce__(self) -> "tuple[Callable[..., StllavaError], tuple[object, ...]]":
        """Errors cross from one process to another as they are."""
        return _remade, (type(self), str(self))


def _remade(kind: type[StllavaError], text: str) -> StllavaError:
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    return error


class CollapseError(StllavaError):
    """A training that was stopped because it unlearned; a run keeps the best policy before it."""


class ConflictError(StllavaError):
    """A folder that holds the output of other work; nothing of it was touched."""


class FormatError(StllavaError):
    """A folder or file that another version of stllava wrote."""


class NothingLeftError(StllavaError):
    """A stage of which nothing came; a run that has learned something before keeps that."""


class ItemError(Exception):
    """One image or row that cannot be used; `cause` is a short word counted in the manifest."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


class TextError(ItemError):
    """One text that the model cannot be given as it stands; of other items, the images are to blame."""


def cause_of(error: ItemError) -> str:
    """Why an item with images and text could not be put before the model, as it is counted."""
    return error.cause if isinstance(error, TextError) else f"image {error.cause}"
