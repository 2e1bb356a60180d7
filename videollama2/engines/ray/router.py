"""Chooses a replica for a request on Ray Serve: the one that has its media cached, unless it is much busier.

The rule is that of this package's controller, :mod:`videollama2.serve.cluster.registry`.
"""

from __future__ import annotations

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from videollama2.serve.cluster.affinity import SLACK, favourite


class MediaAffinityRouter(RequestRouter):
    """Sends requests with the same session id to the same replica.

    The session id is the affinity key of a request. The argument ``tried`` of a request lists replicas that lost it.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas in groups; within a group, Serve takes the one with the fewest requests."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        tried = pending_request.kwargs.get("tried", ())
        left = [replica for replica in candidate_replicas if replica.replica_id.unique_id not in tried]
        left = left or candidate_replicas
        affinity = pending_request.metadata.session_id
        if not affinity or not left:
            return [left]
        by_name = {replica.replica_id.unique_id: replica for replica in left}
        queues = {name: self._queue(replica) for name, replica in by_name.items()}
        best = favourite(affinity, by_name)
        if queues[best] > min(queues.values()) + SLACK:
            return [left]
        return [[by_name[best]], left]

    def _queue(self, replica: RunningReplica) -> int:
        """Return the number of requests at a replica, as far as this process knows."""
        return self.replica_queue_len_cache.get(replica.replica_id) or 0
