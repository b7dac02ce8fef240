"""Images with files of owners that no node has: imported and pulled by the real containerd."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from agent.containerd import unpack
from agent.containerd.client import Containerd
from agent.containerd.images import Image
from agent.containerd.snapshots import view_key
from agent.containerd.unpack import owners_in
from agent.errors import AgentError
from tests import oci
from tests.inside.containerd_base import Place, main, soon
from tests.inside.containerd_images import left

HUGE = 1516583083
BASE = oci.layer({"etc/passwd": b"root:x:0:0::/:\n", "app/gone": b"x"}, {"etc/passwd": (5, 6)})
FOREIGN = oci.layer(
    {"app/x.md": b"x", "app/y": b"y", "app/mine": b"m", "app/.wh.gone": b"", "app/l": "-> x.md"},
    {"app/x.md": (HUGE, HUGE), "app/y": (1000, 70000), "app/mine": (1000, 1000)},
)
UPPER = oci.layer({"app/upper": b"u"}, {"app/upper": (7, 8)})


def archive(place: Place, name: str, layers: Sequence[oci.Layer]) -> Path:
    path = place.dir / f"{name}.tar"
    oci.write_archive(path, list(layers), name=f"kindling.local/{name}:1")
    return path


async def load(ct: Containerd, path: Path) -> Image:
    (image,) = await ct.importer.load(path, scratch=path.parent, deadline=soon())
    return image


async def seen(ct: Containerd, image: Image) -> dict[str, Any]:
    """What its layers hold, by owner, and what its snapshots say of owners."""
    found: dict[str, Any] = {}
    for layer in await ct.snapshots.image_layers(image.chain_id):
        for top, _, names in os.walk(layer):
            for name in names:
                status = os.lstat(f"{top}/{name}")
                path = str(Path(top, name).relative_to(layer))
                found.setdefault(path, [status.st_uid, status.st_gid])
    chain = await ct.snapshots.chain(image.chain_id)
    owners = owners_in(snapshot.labels for snapshot in reversed(chain))
    warnings = [owners.warning()] if owners.files else []
    return {"files": found, "warnings": warnings, "layers": len(chain)}


async def drop(ct: Containerd, *images: Image) -> None:
    for image in images:
        await ct.snapshots.remove(view_key(image.chain_id))
        await ct.images.delete(image.name, sync=True)


async def imported(ct: Containerd, place: Place) -> Any:
    """It runs with the overflow owner, outlives a collection, and shares layers both ways."""
    good = await load(ct, archive(place, "good", [BASE]))
    image = await load(ct, archive(place, "foreign", [BASE, FOREIGN]))
    again = await load(ct, archive(place, "foreign", [BASE, FOREIGN]))
    on_top = await load(ct, archive(place, "ontop", [BASE, FOREIGN, UPPER]))
    swept = await load(ct, archive(place, "swept", [UPPER]))
    await drop(ct, swept)  # collects what nothing holds
    results: dict[str, Any] = {
        "good": await seen(ct, good),
        "image": await seen(ct, image),
        "same": again == image,
        "on_top": await seen(ct, on_top),
        "unpacked": image.unpacked_bytes,
    }
    await drop(ct, good, image, on_top)
    results["left"] = await left(ct)
    return results


async def sparse(ct: Containerd, place: Place) -> Any:
    """A sparse file comes out whole, and what follows it is found; GNU tar's PAX form of it."""
    folder = place.dir / "sparse"
    folder.mkdir()
    with (folder / "holes").open("wb") as file:
        for n in range(60):
            file.seek(n << 17)
            file.write(b"%d" % n * 2000)
    (folder / "zlast").write_bytes(b"last")
    command = ["tar", "--format=pax", "-S", "--numeric-owner", f"--owner=:{HUGE}", "-c"]
    packed = subprocess.run(
        [*command, "-C", str(folder), "holes", "zlast"], capture_output=True, check=True
    )
    assert len(packed.stdout) < 2 << 20
    image = await load(ct, archive(place, "sparse", [BASE, oci.Layer(packed.stdout)]))
    top = (await ct.snapshots.image_layers(image.chain_id))[0]
    whole = Path(top, "holes").read_bytes() == (folder / "holes").read_bytes()
    results = {"whole": whole, **await seen(ct, image)}
    await drop(ct, image)
    return results


async def refused(ct: Containerd, place: Place) -> Any:
    """What cannot be verified or filtered is refused by name, and leaves nothing."""
    results: dict[str, Any] = {}
    lying = oci.image([BASE, FOREIGN])
    raw = lying.blobs
    config = next(key for key, data in raw.items() if FOREIGN.diff_id.encode() in data)
    changed = raw[config].replace(FOREIGN.diff_id.encode(), UPPER.diff_id.encode())
    manifest = raw[lying.digest].replace(config.encode(), oci.digest(changed).encode())
    blobs = {key: data for key, data in raw.items() if key not in (config, lying.digest)}
    blobs |= {oci.digest(changed): changed, oci.digest(manifest): manifest}
    at = lying.manifest | {"digest": oci.digest(manifest), "size": len(manifest)}
    path = place.dir / "lying.tar"
    oci.write_tar(path, oci.layout(oci.OciImage(blobs, at), "kindling.local/lying:1"))
    results["lying"] = await outcome(ct, path)
    whole = oci.layer({"a": b"x", "b": b"y" * 5000}, {"a": (HUGE, 0)}).tar
    cut = oci.Layer(whole[: whole.index(b"yyyy") + 1000])
    results["cut"] = await outcome(ct, archive(place, "cut", [BASE, cut]))
    plain = archive(place, "plain", [BASE, FOREIGN])
    with mock.patch.object(unpack, "OWNERS_MEDIA_TYPE", "application/vnd.nobody.knows"):
        results["no_filter"] = await outcome(ct, plain)
    results["left"] = await left(ct)
    return results


async def outcome(ct: Containerd, path: Path) -> Any:
    try:
        await load(ct, path)
    except AgentError as failure:
        return {"class": type(failure).__name__, "text": failure.message}
    return {"class": None}


async def pulled(ct: Containerd, place: Place) -> Any:
    """A pull ends the same way, under its own name."""
    name = f"{os.environ['PULL_REGISTRY']}/foreign:1"
    image = await ct.transfer.pull(name, deadline=soon())
    again = await ct.transfer.pull(name, deadline=soon())
    results = {"image": await seen(ct, image), "same": again == image, "name": image.name == name}
    await drop(ct, image)
    with mock.patch.object(unpack, "OWNERS_MEDIA_TYPE", "application/vnd.nobody.knows"):
        try:
            await ct.transfer.pull(name, deadline=soon())
        except AgentError as failure:
            results["no_filter"] = {"class": type(failure).__name__, "text": failure.message}
    results["left"] = await left(ct)
    return results


if __name__ == "__main__":
    main(imported, sparse, refused, pulled)
