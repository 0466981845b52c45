"""A Ray cluster of three nodes on the loopback of this machine."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

MEMORY = 100 * 2**20  # of a node's object store

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on the loopback alone
    "RAY_worker_niceness": "0",  # 15 else: on a busy machine nothing moves
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def ray_cluster(nodes: int = 3) -> Iterator[Any]:
    """Gives a running cluster, whose head has no CPU; nothing of it is left afterwards."""
    os.environ.update(SETTINGS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of Ray's own code
        cluster_utils = pytest.importorskip("ray.cluster_utils", reason="ray is not installed")
        settings = {"object_store_memory": MEMORY, "include_dashboard": False}
        cluster = cluster_utils.Cluster(
            initialize_head=True, head_node_args=settings | {"num_cpus": 0}
        )
        try:
            for _ in range(nodes - 1):
                cluster.add_node(num_cpus=1, **settings)
            yield cluster
        finally:
            import ray

            ray.shutdown()
            cluster.shutdown()


@contextmanager
def connected(cluster: Any) -> Iterator[None]:
    """Connects this process to the cluster, so that what it does uses the same workers."""
    import ray

    ray.init(address=cluster.address, namespace="tests", log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()
