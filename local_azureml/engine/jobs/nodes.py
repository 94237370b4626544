"""The nodes of a cluster that a job keeps while it runs."""

import secrets

from local_azureml import cloud
from local_azureml.control_plane import computes, quota, shapes
from local_azureml.errors import user_error


class Nodes:
    """The nodes that a job keeps, from the first step to the idle time after the last."""

    def __init__(self, local: cloud.Cloud, job: str, compute: str, nodes: int, instance_type: str):
        self._local, self._interval = local, f"job-{job}-{secrets.token_hex(4)}"
        self._idle, tier = 0.0, quota.DEDICATED
        if compute == "serverless":
            resource, size = "serverless", quota.size_named(local, instance_type)
        else:
            document = computes.find(local, compute)
            cluster = document["properties"]["properties"]
            scale = cluster["scaleSettings"]
            resource, size = f"cluster {document['name']}", quota.size_named(local, cluster["vmSize"])
            if nodes > scale["maxNodeCount"]:
                raise user_error(
                    f"{nodes} nodes asked for; cluster {compute!r} has at most {scale['maxNodeCount']}"
                )
            self._idle = shapes.seconds(scale["nodeIdleTimeBeforeScaleDown"])
            tier = computes.tier_of(cluster)
        self.low_priority = tier == quota.LOW_PRIORITY
        self._start = lambda: local.meter.start(self._interval, resource, size["name"], nodes, tier)

    def __enter__(self) -> "Nodes":
        self._start()
        return self

    def __exit__(self, *_) -> None:
        self._local.meter.stop(self._interval, self._idle)
