"""Objects by name, for YAML and the command line. In Python, pass the object itself."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any


def build(
    kind: str, spec: Any, known: Mapping[str, type], hints: Mapping[str, str] | None = None
) -> Any:
    """Build the object that ``spec`` describes.

    Args:
        kind: kind of object for error messages, such as "criterion" or "policy".
        spec: the object itself (a class is instantiated), a known name, ``"module:attribute"``, or
            a mapping ``{"name": one of these, **parameters}``.
        known: name -> class of each known object of this kind.
        hints: unknown name -> clause for the error message, for names that used to be known.

    Raises:
        ValueError: the name is unknown, the attribute can't be imported, or the parameters do not
            fit.
    """
    parameters: dict[str, Any] = {}
    if isinstance(spec, Mapping):
        parameters = dict(spec)
        spec = parameters.pop("name", None)
        if spec is None:
            raise ValueError(f"expected a `name` in the settings of the {kind}, got {parameters}")
    if not isinstance(spec, str):
        if parameters:
            raise ValueError(
                f"expected a name beside {sorted(parameters)}, got the {kind} {spec!r}"
            )
        return spec() if isinstance(spec, type) else spec
    if spec in known:
        target: Any = known[spec]
    elif ":" in spec:
        target = import_object(kind, spec)
    else:
        hint = (hints or {}).get(spec)
        raise ValueError(
            f"unknown {kind} {spec!r}; known: {', '.join(sorted(known))}, "
            "or 'module:attribute' for your own" + (f"; {hint}" if hint else "")
        )
    if not isinstance(target, type):
        if parameters:
            raise ValueError(f"{kind} {spec!r} is not a class, so it takes no {sorted(parameters)}")
        return target
    try:
        return target(**parameters)
    except TypeError as error:
        raise ValueError(f"{kind} {spec!r} does not take these settings: {error}") from error


def describe(thing: Any, known: Mapping[str, type]) -> dict[str, Any]:
    """JSON-ready settings from which `build` makes ``thing`` again.

    If that is impossible, the settings have the key "custom" instead of "name". This holds for
    lambdas, for methods of an object, for objects that are not dataclasses or have fields that are
    not JSON values, and for everything defined in the main script.
    """
    names = {cls: name for name, cls in known.items()}
    is_function = hasattr(thing, "__qualname__")
    owner = thing if is_function else type(thing)
    path = f"{owner.__module__}:{owner.__qualname__}"
    name = names.get(owner, path)
    importable = "<" not in path and not path.startswith("__main__:")
    if is_function and importable and not inspect.ismethod(thing):
        return {"name": name}
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type) and importable:
        with suppress(RecursionError, TypeError, ValueError):
            fields = json.dumps(dataclasses.asdict(thing), allow_nan=False)
            return {"name": name, **json.loads(fields)}
    return {"custom": path}


def import_object(kind: str, spec: str) -> Any:
    """Import ``"module:attribute"``.

    Args:
        kind: see `build`.
        spec: a module and an attribute, which may be nested, such as "a.b:C.d".

    Raises:
        ValueError: the module or attribute can't be imported.
    """
    module, _, attribute = spec.partition(":")
    try:
        target = import_module(module)
        for part in attribute.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"could not import the {kind} {spec!r}: {error}") from error
    return target
