"""Where samples come from: one small class for each kind of source, all with the same two methods."""

from pipeline.locations import SourceError
from pipeline.sources.base import Item, Listing, Source
from pipeline.sources.folder import FolderSource
from pipeline.sources.imagenet import ImageNetTrainSource, ImageNetValSource
from pipeline.sources.inaturalist import INaturalistSource
from pipeline.sources.lists import ListSource
from pipeline.sources.places import PlacesSource
from pipeline.sources.webdataset import WebDatasetSource

__all__ = [
    "FolderSource",
    "INaturalistSource",
    "ImageNetTrainSource",
    "ImageNetValSource",
    "Item",
    "ListSource",
    "Listing",
    "PlacesSource",
    "Source",
    "SourceError",
    "WebDatasetSource",
]
