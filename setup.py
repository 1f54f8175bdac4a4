"""Which folders become packages. Everything else about the package is in pyproject.toml."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["blip", "blip.*"]), "blip.configs"],
    package_dir={"blip.configs": "configs"},  # a checkout has them at the top, a wheel inside the package
)
