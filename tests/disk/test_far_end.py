# SPDX-License-Identifier: GPL-2.0-or-later
"""Another process's end of a socket takes more than it was made for; no other socket of it is touched."""

from __future__ import annotations

import socket
import subprocess
import sys

from vmlink.disk import far_end

CLIENT = """
import socket, sys
near, other = socket.socket(socket.AF_UNIX), socket.socketpair()
near.connect(b"\\0" + bytes.fromhex(sys.argv[1]))
print("connected", flush=True)
sys.stdin.read(1)
print(*(each.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) for each in (near, *other)), flush=True)
sys.stdin.read()
"""


def test_one_end_is_widened() -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("")
        server.listen(1)
        address = server.getsockname()
        with subprocess.Popen([sys.executable, "-c", CLIENT, address[1:].hex()], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True) as client:
            assert client.stdin is not None and client.stdout is not None
            assert client.stdout.readline() == "connected\n"
            assert not far_end.widen(client.pid, b"\0another")
            assert far_end.widen(client.pid, address)
            client.stdin.write("?")
            client.stdin.flush()
            near, *others = map(int, client.stdout.readline().split())
            client.stdin.close()
            assert client.wait(10) == 0
        assert near >= far_end.ROOM > max(others)
        assert not far_end.widen(client.pid, address), "nobody is there any more"
