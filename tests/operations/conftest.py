"""Plug-ins in the catalog for the time of a test."""

from registering import install as install  # noqa: PLC0414 - a fixture for this folder
from registering import register as register  # noqa: PLC0414
