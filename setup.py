"""The list of packages; everything else is in setup.cfg. The configs lie beside the package and are installed
inside it."""

from setuptools import find_packages, setup


setup(
    packages=[*find_packages(include=["h2c_hf*"]), "h2c_hf.hub_configs"],
    package_dir={"h2c_hf.hub_configs": "hub_configs"},
)
