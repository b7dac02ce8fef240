"""`kindling status`: the node, its functions, their instances and the images, on one page."""

from __future__ import annotations

import click

from agent.cli import answer, table
from agent.cli.answer import Json, json_option, print_json
from agent.cli.client import Client, connect


@click.command()
@json_option
def command(as_json: bool) -> None:
    """Show the node, its functions, their instances and the images."""
    with connect() as client:
        found = _read(client)
    if as_json:
        print_json(found)
    else:
        _show(found)


def _read(client: Client) -> Json:
    from agent._pb.worker.v1 import worker_pb2 as pb

    node = client.ask("GetNode", pb.GetNodeRequest(), pb.Node)
    functions: list[Json] = []
    token = ""
    while True:
        page = client.ask("List", pb.ListRequest(page_token=token), pb.ListResponse)
        functions += [answer.function(one) for one in page.functions]
        token = page.next_page_token
        if not token:
            break
    instances = client.ask("ListInstances", pb.ListInstancesRequest(), pb.ListInstancesResponse)
    images = client.ask("ListImages", pb.ListImagesRequest(), pb.ListImagesResponse)
    return {
        "node": answer.node(node),
        "functions": functions,
        "instances": [answer.instance(one) for one in instances.instances],
        "images": [answer.image(one) for one in images.images],
    }


def _show(found: Json) -> None:
    node = found["node"]
    capacity = node["capacity"]
    standby = sum(one["state"] == "STANDBY" for one in found["instances"])
    waiting = f" ({standby} standby)" if standby else ""
    state = "draining" if node["draining"] else "serving"
    version = f"kindling {node['version']} ({node['form']})"
    click.echo(f"{node['name']} in {node['region']}, {version}, {state}")
    click.echo(
        f"instances {capacity['instances_used']} of {capacity['instances']}{waiting}, "
        f"memory {_share(capacity, 'memory')}, "
        f"calls {capacity['inflight']} running, {capacity['queued']} waiting"
    )
    if node["summary"]:
        click.echo(node["summary"])
    if node["reload"] and node["reload"]["state"] == "failed":
        click.echo(f"last reload failed: {node['reload']['reason']}")
    _section("FUNCTION", [_function_row(one) for one in found["functions"]])
    _section("INSTANCE", [_instance_row(one) for one in found["instances"]])
    _section("IMAGE", [image_row(one) for one in found["images"]])


COLUMNS = {
    "FUNCTION": ("FUNCTION", "VERSION", "STATE", "CONTRACT", "KIND", "IMAGE"),
    "INSTANCE": ("INSTANCE", "FUNCTION", "VERSION", "STATE", "CALLS", "COLD START"),
    "IMAGE": ("IMAGE", "DIGEST", "SIZE", "COMPRESSED", "FORM", "LAST USE", "USED BY"),
}


def _section(name: str, rows: list[list[str]]) -> None:
    click.echo()
    if rows:
        table.print_table(COLUMNS[name], rows)
    else:
        click.echo(f"no {name.lower()}s")


def _share(capacity: Json, what: str) -> str:
    used, whole = capacity[f"{what}_used_bytes"], capacity[f"{what}_bytes"]
    return f"{table.size(used)} of {table.size(whole)}"


def _function_row(one: Json) -> list[str]:
    state = one["state"] + (f": {one['reason']}" if one["reason"] else "")
    return [
        one["name"],
        str(one["version"]),
        state,
        one["contract"],
        one["kind"],
        one["image"],
    ]


def _instance_row(one: Json) -> list[str]:
    cold = one["cold_start"]
    return [
        one["id"],
        one["function"],
        str(one["version"]),
        one["state"],
        str(one["inflight"]),
        f"{cold['total_ms']:.1f} ms" if cold else "-",
    ]


def image_row(one: Json) -> list[str]:
    """Return an image as a row under COLUMNS["IMAGE"]."""
    return [
        one["name"],
        table.short(one["digest"]),
        table.size(one["unpacked_bytes"]),
        table.size(one["size_bytes"]),
        one["form"] or "-",
        table.ago(one["used_at"]),
        ", ".join(one["used_by"]) or "-",
    ]
