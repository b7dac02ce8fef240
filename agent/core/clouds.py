"""Where clouds tell a machine about itself: addresses that answer with the machine's credentials.

What answers there trusts whoever asks from the machine, and a function asks from it: tokens of the
node's role, its start-up script, the host agent's channel. `network/egress` refuses all of them to
every function, `core/registry_hops` to a registry that sends the agent there. The IPv6 ones are for
the latter only: functions have no IPv6 (`network/bridge`).

Not here: clouds whose metadata has no address of its own (CloudStack's virtual router, Equinix's
public name), and their resolvers and mirrors, which hold nothing of the machine's. An operator
closes what else there is with `network.deny`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metadata:
    """One address that tells about the machine it is asked from."""

    address: str
    clouds: str
    source: str


METADATA = (
    Metadata(
        "169.254.169.254",
        "AWS, Google, Azure, Oracle, IBM, Huawei, Baidu, Yandex, OpenStack, DigitalOcean, Hetzner, "
        "Linode, Vultr, Exoscale, UpCloud, OVH",
        "each cloud's guide to instance metadata; cloud-init's data sources",
    ),
    Metadata("169.254.170.2", "AWS ECS", "ECS guide: task metadata and credentials"),
    Metadata("169.254.170.23", "AWS EKS", "EKS guide: Pod Identity agent"),
    Metadata("169.254.169.252", "Google GKE", "GKE guide: metadata server of a node"),
    Metadata("169.254.0.23", "Tencent", "CVM guide: metadata.tencentyun.com"),
    Metadata("169.254.42.42", "Scaleway", "Instances guide; cloud-init: DataSourceScaleway"),
    Metadata(
        "168.63.129.16", "Azure", "Azure guide: what is IP address 168.63.129.16 (wire server)"
    ),
    Metadata("100.100.100.200", "Alibaba", "ECS guide: instance metadata; DataSourceAliYun"),
    Metadata("100.96.0.96", "Volcengine, BytePlus", "ECS guide: instance metadata"),
    Metadata("100.80.80.80", "UCloud", "UHost guide: metadata server"),
    Metadata("192.0.0.192", "Oracle Classic", "Compute Classic guide: instance metadata"),
)

METADATA_IPV6 = ("fd00:ec2::254", "fd20:ce::254", "fd00:42::42")
"""AWS, Google, Scaleway."""
