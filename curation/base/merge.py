from typing import Any


def merge(model: Any, base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merge(model, old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result
