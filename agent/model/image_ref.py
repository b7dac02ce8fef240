"""Image references: `[host[:port]/]path[:tag][@sha256:digest]`.

Follows the grammar of the distribution project's reference documentation. Only the text is judged
here; `agent/containerd` asks registries and the content store.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_HOST = r"(?:localhost|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+|[A-Za-z0-9-]+(?=:[0-9])|\[[0-9a-fA-F:]+\])"
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REF = re.compile(
    rf"(?:(?P<host>{_HOST}(?::[0-9]{{1,5}})?)/)?"
    rf"(?P<path>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)
MAX_REF_CHARS = 512


@dataclass(frozen=True, slots=True)
class ImageRef:
    """A reference taken apart; `tag` and `digest` are empty when not given."""

    host: str
    path: str
    tag: str
    digest: str

    @property
    def full(self) -> str:
        """The reference as containerd names images: host always, `latest` when nothing is said."""
        tag = f":{self.tag}" if self.tag or self.digest else ":latest"
        tag = "" if tag == ":" else tag
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.host}/{self.path}{tag}{digest}"


def parse_image_ref(text: str) -> ImageRef:
    """Take a reference apart; a short name is Docker Hub's, as everywhere. Raises ValueError."""
    match = _REF.fullmatch(text) if len(text) <= MAX_REF_CHARS else None
    if match is None:
        raise ValueError(
            f"{text[:80]!r} is not an image reference: write [host[:port]/]path[:tag][@sha256:…], "
            "the path in lower case"
        )
    host, path = match["host"] or "docker.io", match["path"]
    if host == "docker.io" and "/" not in path:
        path = f"library/{path}"
    return ImageRef(host, path, match["tag"] or "", match["digest"] or "")
