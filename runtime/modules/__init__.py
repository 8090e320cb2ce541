"""Modules: layers built, divided into stages, tied, and left as they were."""
