# SPDX-License-Identifier: GPL-2.0-or-later
"""A pair's records in etcd, through the JSON gateway of its v3 API (etcd 3.4 and newer).

One key for each VM, replaced in a transaction that compares the revision of its last change. No etcd lease is used:
a grant that ran out by itself could be given to the other host while the first one still speaks.
"""

from __future__ import annotations

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import urllib3

from appliance.arbiter.grants import Record
from appliance.errors import Unavailable

THREADS = 4
"""Questions under way at once."""
LONGEST = 64 << 10
"""Bytes of an answer."""


class _Pair(msgspec.Struct):
    value: bytes = b""
    mod_revision: str = "0"


class _Range(msgspec.Struct):
    kvs: tuple[_Pair, ...] = ()


class _Txn(msgspec.Struct):
    succeeded: bool = False


class EtcdRegister:
    """See the module. `endpoints` are URLs, tried in turn within `timeout` seconds; files are PEM."""

    def __init__(self, endpoints: tuple[str, ...], pair: str, timeout: float, ca: Path | None = None,
                 cert: Path | None = None, key: Path | None = None) -> None:
        self._endpoints, self._prefix, self._timeout = list(endpoints), f"/holdfast/{pair}/", timeout
        given = {"ca_certs": ca, "cert_file": cert, "key_file": key}
        files: dict[str, Any] = {name: str(file) for name, file in given.items() if file is not None}
        self._http = urllib3.PoolManager(num_pools=len(endpoints), maxsize=THREADS, retries=False, **files)
        self._threads = ThreadPoolExecutor(THREADS, "etcd")

    async def read(self, vm: str) -> tuple[int, Record]:
        answer = await self._call("range", {"key": self._key(vm)}, _Range)
        if not answer.kvs:
            return 0, Record()
        try:
            return int(answer.kvs[0].mod_revision), msgspec.json.decode(answer.kvs[0].value, type=Record)
        except (ValueError, RecursionError) as error:
            raise Unavailable(f"{self._prefix}{vm} in etcd is no grant: {error}",
                              "delete that key while both hosts see each other") from None

    async def swap(self, vm: str, version: int, record: Record) -> bool:
        key = self._key(vm)
        compare = {"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": str(version)}
        put = {"request_put": {"key": key, "value": base64.b64encode(msgspec.json.encode(record)).decode()}}
        answer: _Txn = await self._call("txn", {"compare": [compare], "success": [put]}, _Txn)
        return answer.succeeded

    def _key(self, vm: str) -> str:
        return base64.b64encode(f"{self._prefix}{vm}".encode()).decode()

    async def _call(self, method: str, body: dict[str, Any], kind: type[Any]) -> Any:
        """Ask one endpoint after the other. Raises Unavailable."""
        troubles = []
        loop = asyncio.get_running_loop()
        share = self._timeout / len(self._endpoints)
        for endpoint in list(self._endpoints):
            ask = partial(self._post, f"{endpoint.rstrip('/')}/v3/kv/{method}", msgspec.json.encode(body), share)
            try:
                async with asyncio.timeout(share):
                    return msgspec.json.decode(await loop.run_in_executor(self._threads, ask), type=kind)
            except TimeoutError:
                troubles.append(f"{endpoint}: no answer within {share:g} s")
            except (urllib3.exceptions.HTTPError, ValueError, OSError) as error:
                troubles.append(f"{endpoint}: {str(error)[:200]}")
            self._endpoints.append(self._endpoints.pop(0))  # the next question begins with another
        raise Unavailable("etcd does not answer: " + "; ".join(troubles), "is a majority of its members up?")

    def _post(self, url: str, body: bytes, seconds: float) -> bytes:
        answer = self._http.request("POST", url, body=body, timeout=urllib3.Timeout(seconds), preload_content=False,
                                    headers={"Content-Type": "application/json"})
        try:
            content: bytes = answer.read(LONGEST)
        finally:
            answer.release_conn()
        if answer.status != 200:
            raise ValueError(f"status {answer.status}: {content[:100].decode(errors='replace')}")
        return content

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._http.clear()
