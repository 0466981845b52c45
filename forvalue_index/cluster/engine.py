"""Ray: started, or found, for the time of one piece of work. Imported only when it is asked for."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from forvalue_index.errors import DependencyError, InputError

MEMORY = 200 * 2**20
"""Bytes of Ray's object store where it is started here: rows and vectors do not go through it."""
SECONDS = 10.0
"""For which a cluster may be silent before it counts as none."""


def ray_module() -> Any:
    """Returns Ray.

    Raises:
        DependencyError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return import_module("ray")
    except ImportError as error:
        raise DependencyError(
            "ray is not installed: pip install 'forvalue-index[ray]', on each machine"
        ) from error


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Gives Ray, connected, for a `with` block; a connection that is there is used and stays.

    Args:
        address: "local" starts Ray on this machine, on its loopback alone; "auto" is the cluster
            that this machine is a part of; or "host:port" of one.

    Raises:
        DependencyError: it is not installed.
        InputError: there is no cluster at the address.
    """
    ray = ray_module()
    if ray.is_initialized():
        yield ray
        return
    settings: dict[str, Any] = {"namespace": "forvalue", "log_to_driver": False}
    if address == "local":
        settings |= {
            "include_dashboard": False,
            "object_store_memory": MEMORY,
            "_node_ip_address": "127.0.0.1",
        }
    try:
        _require_listener(address)
        ray.init(address=address, logging_level="ERROR", **settings)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"there is no Ray cluster at {address} ({str(error).splitlines()[0][:200]}): start one "
            "with ray start --head, or give --ray local"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Checks that something listens at "host:port": where nothing does, Ray tries for minutes.

    Raises:
        OSError: nothing does.
    """
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        name = host.rpartition("/")[2].strip("[]")  # of ray://[::1]:10001
        socket.create_connection((name, int(port)), SECONDS).close()
