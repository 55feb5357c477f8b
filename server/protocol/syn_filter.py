"""How a listening socket leaves a group that shares its port (SO_REUSEPORT) without failing a handshake under way.

The kernel gives each SYN to one socket of the group, and resets the handshake if that socket is closed before the
client's last word has come: on a wide network that is a whole round trip. So the socket stops hearing SYNs first, waits
for the handshakes that have begun, and closes then. A client whose SYN was not heard sends it again after 1 s, as for
any packet that was lost, and meets another socket of the group. Linux alone can do that, and some kernels let only root do it.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from typing import Final

# How long a handshake that has begun may take to end.
HANDSHAKE_SECONDS: Final = 0.25

# Classic BPF (linux/filter.h): code, jump if true, jump if false, operand. A socket's filter begins at the TCP header.
_ACCEPT_NO_SYN: Final = (
    (0x30, 0, 0, 13),  # load the byte with the flags
    (0x54, 0, 0, 0x12),  # keep SYN and ACK
    (0x15, 0, 1, 0x02),  # a SYN alone?
    (0x06, 0, 0, 0),  # drop it
    (0x06, 0, 0, 0xFFFF),  # take everything else
)
_SO_ATTACH_FILTER: Final = 26


def hear_no_syn(listening: socket.socket) -> bool:
    """Take no new connection any more, while those whose handshake has begun still come; returns whether that works."""
    if sys.platform != "linux":
        return False
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in _ACCEPT_NO_SYN)
    kept = ctypes.create_string_buffer(program)
    try:
        listening.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(_ACCEPT_NO_SYN), ctypes.addressof(kept))
        )
    except OSError:
        return False  # a sandbox without filters, or filters for root only
    return True
