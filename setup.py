"""The list of packages; the rest is in setup.cfg. The configs beside the package are installed inside it."""

from setuptools import find_packages, setup


setup(
    packages=[*find_packages(include=["h2c_hf*"]), "h2c_hf.hub_configs"],
    package_dir={"h2c_hf.hub_configs": "hub_configs"},
)
