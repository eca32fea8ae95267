"""Sizes of the pool's containers in a process: every dict, list, set, deque and cache of `ccp`.

    sizes()["ccp.x509.path_validation.TrustAnchors._leaf_cache"]       # Size(longest=2048, total=2048, owners=1)

A container is named by module, class and attribute; at module level by module and name. Counted is whatever is
reachable from the modules of `ccp` and from live objects, including objects that `gc.freeze` excludes from collection.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import queue
import sys
import types
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

_CACHE: Final = type(functools.lru_cache(lambda: None))
_KINDS: Final = (dict, list, set, deque)
_QUEUES: Final = (asyncio.Queue, queue.Queue, queue.SimpleQueue)
# Not looked into: what these refer to is no state of the pool, and there is much of it.
_CLOSED: Final = (type, types.CodeType, types.BuiltinFunctionType, str, bytes, int, float)


class Size(NamedTuple):
    """longest: length in the owner with the most entries. total: of all owners."""

    longest: int
    total: int
    owners: int


def sizes() -> dict[str, Size]:
    found: dict[str, Size] = {}
    for name, length in _lengths():
        before = found.get(name, Size(0, 0, 0))
        found[name] = Size(max(before.longest, length), before.total + length, before.owners + 1)
    return found


def _lengths() -> Iterator[tuple[str, int]]:
    for name, module in tuple(sys.modules.items()):
        if name == "ccp" or name.startswith("ccp."):
            for attribute, value in tuple(vars(module).items()):
                length = _length(value)
                if length is not None and getattr(value, "__module__", name) == name:
                    yield f"{name}.{attribute}", length
    for owner in _instances():
        cls = type(owner)
        for attribute, value in _attributes(owner):
            length = _length(value)
            if length is not None:
                yield f"{cls.__module__}.{cls.__qualname__}.{attribute}", length


def _length(value: Any) -> int | None:
    """The length; None if the value is not a container."""
    if isinstance(value, _KINDS):
        return len(value)
    if isinstance(value, _QUEUES):
        return value.qsize()
    if isinstance(value, _CACHE):
        return value.cache_info().currsize
    return None


def _attributes(owner: Any) -> Iterator[tuple[str, Any]]:
    yield from tuple(getattr(owner, "__dict__", {}).items())
    for cls in type(owner).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if hasattr(owner, slot):
                yield slot, getattr(owner, slot)


def _instances() -> Iterator[Any]:
    """Every live object of a class of `ccp`."""
    modules = [vars(module) for name, module in tuple(sys.modules.items()) if name.partition(".")[0] == "ccp"]
    waiting: list[Any] = [*modules, *gc.get_objects()]
    seen = {id(one) for one in waiting}
    kept = [waiting]  # So that no id is used twice meanwhile.
    while waiting:
        following = []
        for one in waiting:
            if type(one).__module__.partition(".")[0] == "ccp":
                yield one
        for one in gc.get_referents(*waiting):
            if id(one) not in seen and not isinstance(one, _CLOSED):
                seen.add(id(one))
                following.append(one)
        kept.append(following)
        waiting = following
