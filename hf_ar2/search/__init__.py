"""Searching with the models of a run, or with two models and a collection."""

from hf_ar2.search.system import Hit, SearchSystem
from hf_ar2.settings.search import Settings

__all__ = ["Hit", "SearchSystem", "Settings"]
