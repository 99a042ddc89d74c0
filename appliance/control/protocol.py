# SPDX-License-Identifier: GPL-2.0-or-later
"""What both ends of the control socket keep to.

JSON lines on a UNIX socket. The service greets with `{"protocol": "holdfast.control/1"}`; a request is
`{"id": 1, "verb": "status", "args": {}}`; the answer repeats the id and carries either `ok` or
`error: {"code", "message", "hint"}`. A verb that streams sends any number of answers with `item` before that. The next
request is read when the one before is answered; a client that has enough of a stream closes the connection.
"""

PROTOCOL = "holdfast.control/1"
MAX_REQUEST_BYTES = 64 << 10
MAX_ANSWER_BYTES = 4 << 20
