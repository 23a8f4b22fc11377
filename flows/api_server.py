"""A Prefect API of one command's own: started beside it, and gone when it ends, however it ends.

Prefect would start such a server by itself, but only after it was imported, and leave it behind
when the command is killed. Usage: `python -m flows.api_server PORT`, with standard input a pipe
from the parent; its end is this process's end.
"""

import os
import signal
import sys
import threading
import time


def _leave_with_the_parent() -> None:
    sys.stdin.buffer.read()  # returns when the parent closes the pipe, or dies
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
    os._exit(1)  # whatever it hung on


def main(port: int) -> None:
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    # Prefect's own switch for a server without the interface and the services for many users.
    os.environ["PREFECT__SERVER_EPHEMERAL"] = "1"
    os.environ["PREFECT_UI_ENABLED"] = "false"
    import uvicorn
    from prefect.server.api.server import create_app

    uvicorn.run(create_app(), host="127.0.0.1", port=port, log_level="error", lifespan="on")


if __name__ == "__main__":
    main(int(sys.argv[1]))
