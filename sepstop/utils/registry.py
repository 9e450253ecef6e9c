"""Names for YAML and the command line; in Python, pass the object itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any


def build(kind: str, spec: Any, known: Mapping[str, type]) -> Any:
    """The object that ``spec`` stands for.

    Args:
        kind: what is being built, for error messages: "criterion", "policy", "embedder".
        spec: the object itself (a class is instantiated), a known name, ``"module:attribute"``, or
            a mapping ``{"name": one of these, **parameters}``.
        known: the names of this kind.

    Raises:
        ValueError: unknown name, unimportable attribute, or parameters that do not fit.
    """
    parameters: dict[str, Any] = {}
    if isinstance(spec, Mapping):
        parameters = dict(spec)
        spec = parameters.pop("name", None)
        if spec is None:
            raise ValueError(f"expected a `name` in the {kind}'s settings, got {parameters}")
    if not isinstance(spec, str):
        if parameters:
            raise ValueError(f"{kind} {spec!r} is no name, so it takes no {sorted(parameters)}")
        return spec() if isinstance(spec, type) else spec
    if spec in known:
        target: Any = known[spec]
    elif ":" in spec:
        target = import_object(kind, spec)
    else:
        raise ValueError(
            f"unknown {kind} {spec!r}; known: {', '.join(sorted(known))}, "
            "or 'module:attribute' for your own"
        )
    if not isinstance(target, type):
        if parameters:
            raise ValueError(f"{kind} {spec!r} is not a class and takes no {sorted(parameters)}")
        return target
    try:
        return target(**parameters)
    except TypeError as error:
        raise ValueError(f"{kind} {spec!r} does not take these settings: {error}") from error


def describe(thing: Any, known: Mapping[str, type]) -> dict[str, Any]:
    """Settings that `build` turns back into ``thing``, ready for JSON.

    What cannot be rebuilt from its settings (a lambda, an object that is not a dataclass or whose
    fields are not JSON values, something defined in the script itself) is described under "custom"
    and has no "name".
    """
    names = {cls: name for name, cls in known.items()}
    is_function = hasattr(thing, "__qualname__")
    owner = thing if is_function else type(thing)
    path = f"{owner.__module__}:{owner.__qualname__}"
    name = names.get(owner, path)
    importable = "<" not in path and not path.startswith("__main__:")
    if is_function and importable:
        return {"name": name}
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type) and importable:
        with suppress(RecursionError, TypeError, ValueError):
            fields = json.dumps(dataclasses.asdict(thing), allow_nan=False)
            return {"name": name, **json.loads(fields)}
    return {"custom": path}


def import_object(kind: str, spec: str) -> Any:
    """What ``"module:attribute"`` names.

    Raises:
        ValueError: it cannot be imported.
    """
    module, _, attribute = spec.partition(":")
    try:
        target = import_module(module)
        for part in attribute.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"could not import the {kind} {spec!r}: {error}") from error
    return target
