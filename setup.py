"""Metadata lives in pyproject.toml; this file lets older tools build the project."""

from setuptools import setup

setup()
