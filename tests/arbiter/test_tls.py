# SPDX-License-Identifier: GPL-2.0-or-later
"""etcd over TLS: it must be signed by whom the configuration names, and may ask the same of a host."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.arbiter.arbiter import make
from appliance.arbiter.grants import Answer
from appliance.arbiter.settings import Arbiter as Settings
from tests.arbiter.conftest import running_etcd

pytestmark = [
    pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd is not installed"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed"),
]


@dataclass(frozen=True)
class Secured:
    """An etcd over TLS. `place` has ca, host and stranger, each a .pem and a .key; stranger has signed itself."""

    url: str
    place: Path

    def ask(self, *, ca: str | None = "ca", cert: str | None = "host") -> Answer:
        def file(name: str | None, kind: str) -> Path | None:
            return None if name is None else self.place / f"{name}.{kind}"

        settings = Settings(kind="etcd", endpoints=(self.url,), ca_file=file(ca, "pem"), cert_file=file(cert, "pem"),
                            cert_key_file=file(cert, "key"))

        async def run() -> Answer:
            alpha = make(settings, "alpha", "beta")
            try:
                return await alpha.ask("web1", 1)
            finally:
                await alpha.close()

        return asyncio.run(run())


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    place = tmp_path_factory.mktemp("tls")
    for name, signer in (("ca", None), ("stranger", None), ("host", "ca")):
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                   "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
                   "-out", str(place / f"{name}.pem"), "-keyout", str(place / f"{name}.key")]  # fmt: skip
        if signer is not None:
            command += ["-CA", str(place / f"{signer}.pem"), "-CAkey", str(place / f"{signer}.key")]
        subprocess.run(command, check=True, capture_output=True, timeout=20)
    files = ["--cert-file", str(place / "host.pem"), "--key-file", str(place / "host.key"),
             "--client-cert-auth", "--trusted-ca-file", str(place / "ca.pem")]  # fmt: skip
    with running_etcd(place, files, scheme="https") as url:
        yield Secured(url, place)


def test_both_sides_are_known(secured: Secured) -> None:
    answer = secured.ask()
    assert answer.granted, answer


def test_an_etcd_that_a_stranger_signed_is_not_believed(secured: Secured) -> None:
    for ca in ("stranger", None):
        answer = secured.ask(ca=ca)
        assert not answer.granted and "certificate verify failed" in answer.reason, answer


def test_a_host_without_a_certificate_gets_no_word(secured: Secured) -> None:
    for cert in ("stranger", None):
        answer = secured.ask(cert=cert)
        assert not answer.granted and "etcd does not answer" in answer.reason, answer
