"""What pyproject.toml cannot say: a wheel has the references, which lie beside the package, inside it."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["audit", "audit.*"]), "audit.references"],
    package_dir={"audit.references": "references"},
)
