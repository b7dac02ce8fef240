"""Which of an archive's images is meant, and what it shall be called. Pure.

A name chooses among several: one that the archive gives in full, or whose tag is a bare tag of the
archive (`skopeo copy oci:DIR:TAG`, umoci). An only image is called as asked. Without a name an only
image keeps its names; several are refused, or all taken under theirs if asked, as `docker load`
does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.containerd.layout import ImageLayout, Layouts
from agent.errors import InvalidSpec, Problem
from agent.model.image_ref import ImageRef, parse_image_ref

MAX_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Chosen:
    """An image to store, and the full names it is recorded under."""

    layout: ImageLayout
    names: tuple[str, ...]


def choose(found: Layouts, name: str, path: Path, *, everything: bool) -> tuple[Chosen, ...]:
    """Return what to store of an archive. Raises InvalidSpec naming what there is, and the way out.

    With `everything` each image that has a name is taken, and what cannot run here refuses it all.
    """
    if everything:
        if name:
            raise _refusal(path, "a name chooses one image: leave it out to import all of them")
        for failure in found.refused.values():
            raise failure
        return tuple(Chosen(one, _full_names(one, path)) for one in found.images)
    if name:
        return (_named(found, _parsed(name), path),)
    if len(found.images) == 1 and not found.refused:
        return (Chosen(found.images[0], _full_names(found.images[0], path)),)
    if not found.images and len(found.refused) == 1:
        raise next(iter(found.refused.values()))
    raise _several(found, path, "")


def _named(found: Layouts, asked: ImageRef, path: Path) -> Chosen:
    full = (asked.full,)
    for one in found.images:
        if any(_is_full(name) and _same(name, asked) for name in one.names):
            return Chosen(one, full)
    for name, failure in found.refused.items():
        if _same(name, asked):
            raise failure
    if len(found.images) == 1 and not found.refused:
        return Chosen(found.images[0], full)
    tagged = [one for one in found.images if asked.tag and asked.tag in one.names]
    if len(tagged) == 1:
        return Chosen(tagged[0], full)
    if not found.images and len(found.refused) == 1:
        raise next(iter(found.refused.values()))
    raise _several(found, path, asked.full)


def _several(found: Layouts, path: Path, asked: str) -> InvalidSpec:
    each = [one.names[0] if one.names else one.target.digest[:19] for one in found.images]
    every = [*each, *found.refused]
    more = f" and {len(every) - MAX_SHOWN} more" if len(every) > MAX_SHOWN else ""
    shown = ", ".join(every[:MAX_SHOWN]) + more
    why = f"none is {asked}" if asked else "name the one you mean (--name REF), or import --all"
    return _refusal(path, f"holds {len(every)} images ({shown}): {why}")


def _full_names(layout: ImageLayout, path: Path) -> tuple[str, ...]:
    """Return the names an archive gives in full; a bare tag such as "latest" or "v1" is none."""
    names = [_full(name) for name in layout.names if _is_full(name)]
    found = tuple(dict.fromkeys(name for name in names if name))
    if found:
        return found
    said = _shown(layout.names)
    why = f"does not say what the image is called{said}: give it a name (--name REF)"
    raise _refusal(path, why)


def _shown(names: Sequence[str]) -> str:
    return f" (only {', '.join(names[:MAX_SHOWN])})" if names else ""


def _is_full(name: str) -> bool:
    return "/" in name or ":" in name


def _full(name: str) -> str:
    """Return a name in full; "" for one that is no reference."""
    try:
        return parse_image_ref(name).full
    except ValueError:
        return ""


def _same(name: str, asked: ImageRef) -> bool:
    return _full(name) == asked.full


def _parsed(name: str) -> ImageRef:
    try:
        return parse_image_ref(name)
    except ValueError as error:
        raise InvalidSpec([Problem("image", str(error))]) from error


def _refusal(path: Path, why: str) -> InvalidSpec:
    return InvalidSpec([Problem(str(path), why)])
