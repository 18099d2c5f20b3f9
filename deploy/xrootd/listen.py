# ruff: noqa: INP001 - a script
"""Start a server that takes its sockets from systemd, such as xrootd, on one address.

    python3 listen.py ADDRESS PORT[,PORT...] COMMAND...

XRootD has no option for the address that it listens on; but sockets that are open already, and
announced as systemd does it, it takes as they are.
"""

import os
import socket
import sys

FIRST = 3  # where systemd's protocol has the sockets to begin (sd_listen_fds(3))


def main() -> None:
    """Open the sockets, and become the command."""
    address, ports, command = sys.argv[1], sys.argv[2].split(","), sys.argv[3:]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sockets = []
    for port in ports:
        try:
            made = socket.create_server((address, int(port)), family=family, backlog=255)
        except (OSError, OverflowError, ValueError) as error:
            sys.exit(f"serve: {address}:{port}: {getattr(error, 'strerror', None) or error}")
        sockets.append(os.dup(made.fileno()))
        made.detach()
    high = max(sockets) + FIRST + len(sockets)  # out of the way of each other
    for number, descriptor in enumerate(sockets):
        os.dup2(descriptor, high + number)
    for number in range(len(sockets)):
        os.dup2(high + number, FIRST + number, inheritable=True)
    os.closerange(FIRST + len(sockets), high + len(sockets))
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(sockets)))
    os.execvp(command[0], command)  # noqa: S606 - as it was typed


if __name__ == "__main__":
    main()
