"""The nodes of a cluster that a job keeps while it runs."""

import secrets

from local_azureml.context import Context
from local_azureml.control_plane import computes, jobs, quota, shapes
from local_azureml.errors import user_error


class Nodes:
    """The nodes that a job keeps, from the first step to the idle time after the last."""

    def __init__(self, context: Context, job: str, compute: str, nodes: int, instance_type: str):
        self._context, self._interval = context, f"job-{job}-{secrets.token_hex(4)}"
        self._idle, tier = 0.0, quota.DEDICATED
        if compute == jobs.SERVERLESS:
            resource, size = jobs.SERVERLESS, quota.size_named(context, instance_type)
        else:
            document = computes.find(context, compute)
            cluster = document["properties"]["properties"]
            scale = cluster["scaleSettings"]
            resource, size = f"cluster {document['name']}", quota.size_named(context, cluster["vmSize"])
            if nodes > scale["maxNodeCount"]:
                raise user_error(
                    f"{nodes} nodes asked for; cluster {compute!r} has at most {scale['maxNodeCount']}"
                )
            self._idle = shapes.seconds(scale["nodeIdleTimeBeforeScaleDown"])
            tier = computes.tier_of(cluster)
        self.low_priority = tier == quota.LOW_PRIORITY
        self._start = lambda: context.meter.start(self._interval, resource, size["name"], nodes, tier)

    def __enter__(self) -> "Nodes":
        self._start()
        return self

    def __exit__(self, *_) -> None:
        self._context.meter.stop(self._interval, self._idle)
