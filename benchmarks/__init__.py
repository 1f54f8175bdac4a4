"""Measurements, each against a named peer: see CONTRIBUTING.md. Without this file, fairscale's package hides it."""
