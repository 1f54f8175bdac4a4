"""Measurements against a named peer. A package, since fairscale installs one of the same name."""
