"""Where a run's data comes from: one file a source, and one line here."""

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from stllava.data.sources.hub_dataset import HubData as HubData
from stllava.data.sources.imported_set import ImportedData as ImportedData
from stllava.data.sources.own_files import FilesData as FilesData
from stllava.data.sources.pathvqa_train import PathVqaData as PathVqaData
from stllava.data.sources.phantom_source import PhantomData as PhantomData
from stllava.data.sources.slake_train import SlakeData as SlakeData
from stllava.data.sources.source import SOURCES, SourceOptions, source_of
from stllava.data.sources.vqa_rad_train import VqaRadData as VqaRadData

__all__ = ["SOURCES", "Data", "SourceOptions", "source_of"]

if TYPE_CHECKING:
    Data = SourceOptions
else:
    # A type checker knows the base class; a recipe and `--help` all options that are registered, told by their kind.
    Data = Annotated[Union[tuple(SOURCES)], Field(discriminator="kind")]  # noqa: UP007
