"""A Ray cluster of this machine for tests: two nodes of one core each, on loopback, ended with the module.

PYTEST_DONT_REWRITE: the module asserts nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # read when ray is imported: everything listens on loopback
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import pytest

NODE = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes; `address` is where it is reached."""
    utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed")
    made = _started(utils)
    try:
        yield made
    finally:
        import ray

        ray.shutdown()
        made.shutdown()


def _started(utils: Any) -> Any:
    for left in (2, 1, 0):
        made = utils.Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        try:
            made.add_node(**NODE)
            return made
        except Exception:  # Ray gives a node half a minute, which a busy machine may not have
            made.shutdown()
            if not left:
                raise
    return None
