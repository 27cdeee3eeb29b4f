"""What one of several workers gets of the numbers in the settings, which are those of the whole gateway."""

from gateway.errors import SettingsError
from gateway.settings import Settings


def check_shares(settings: Settings) -> None:
    """Refuse a number of workers among whom a limit cannot be divided; raises SettingsError."""
    workers = settings.server.workers
    limits = {"server.max_concurrency": settings.server.max_concurrency}
    limits |= {f"upstreams.{name}.max_connections": u.max_connections for name, u in settings.upstreams.items()}
    for key, limit in limits.items():
        if limit < workers:
            raise SettingsError(
                f"{key}: {limit} is divided among server.workers ({workers}), and each needs one at least: "
                f"set it to {workers} or more, or take fewer workers"
            )


def share(settings: Settings, worker: int) -> Settings:
    """The settings of one worker, counted from 0: its part of every limit on the whole gateway.

    The parts of a limit differ by one at most and add up to it; `store.queue_size` is one at least.
    """
    workers = settings.server.workers

    def part(limit: int) -> int:
        return (limit + workers - 1 - worker) // workers

    server, store = settings.server, settings.store
    limits = {name: part(getattr(server, name)) for name in ("max_concurrency", "max_queue", "max_held_bytes")}
    upstreams = {
        name: upstream.model_copy(update={"max_connections": part(upstream.max_connections)})
        for name, upstream in settings.upstreams.items()
    }
    return settings.model_copy(
        update={
            "server": server.model_copy(update=limits),
            "store": store.model_copy(update={"queue_size": max(1, part(store.queue_size))}),
            "upstreams": upstreams,
        }
    )
