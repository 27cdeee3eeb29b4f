"""Where log lines go."""

import logging


def log_to_stderr(worker: int | None = None) -> None:
    """Send every line there; with the number of the worker where this process is one of several."""
    who = "" if worker is None else f" worker {worker}"
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s %(levelname)s{who} %(name)s: %(message)s")
    for chatty in ("alembic", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
