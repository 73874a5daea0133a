"""A run, or two models and a collection, opened for searching."""

from hf_ar2.search.system import Hit, SearchSystem
from hf_ar2.settings.search import Settings

__all__ = ["Hit", "SearchSystem", "Settings"]
