"""The algorithms keep the contract of a clusterer."""

from palette_core.testing import parametrize_contract


@parametrize_contract("palette-core-kmeans-sklearn")
def test_contract(check):
    check()
