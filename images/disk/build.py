# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the disk image: Debian on ext4 with PostgreSQL, redis and fio, and the kernel and initramfs that boot it.

    python -m images.disk.build --out DIR [--cache DIR]

writes DIR/disk.img (raw, sparse), DIR/vmlinuz, DIR/initrd.img and DIR/manifest.json. mmdebstrap installs the packages
into a private root, from where this machine's apt gets its own. PostgreSQL's cluster is made with data checksums and
has amcheck. UUIDs and times of the file system are fixed; two builds differ in what PostgreSQL draws by chance for a
cluster, and in what the packages' own scripts leave behind.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from images import packages, recipe
from images.initramfs import EPOCH, Tree, modules
from images.packages import BuildError, run

HERE = Path(__file__).resolve().parent
GUEST = HERE.parent / "guest"
SUITE = "bookworm"
BOOT_PACKAGES = ["linux-image-cloud-amd64", "busybox-static"]
MODULES = ("virtio_pci", "virtio_blk", "virtio_net")
APPLETS = ("cat", "echo", "insmod", "mount", "sh", "switch_root", "usleep")
SIZE = "1G"
UUID, HASH_SEED = "6c64666f-2d68-4469-b36b-696d61676530", "6c64666f-2d68-4469-b36b-696d61676531"
NOT_WANTED = (  # weight that nothing in this guest reads; jit is off, so PostgreSQL never loads LLVM
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/i18n/*",
    "/usr/lib/x86_64-linux-gnu/gconv/*", "/usr/lib/x86_64-linux-gnu/libLLVM*", "/usr/lib/postgresql/15/lib/bitcode/*",
)
FOLDERS = ("var/tmp", "srv/www", "usr/lib/holdfast/checks")
CLUSTER = "var/lib/postgresql/15/main"


def sources() -> str:
    """This machine's own sources of Debian packages, for the root's apt. Raises BuildError when it has none."""
    listing = run("apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI) $(RELEASE) $(COMPONENT)",
                  "Created-By: Packages")  # fmt: skip
    found = {tuple(line.split()[2:]) for line in listing.splitlines()
             if line.split()[0] == "Debian" and line.split()[1].startswith(SUITE)}
    if not found:
        raise BuildError(f"apt has no package lists of Debian {SUITE}: apt-get update, on Debian 12")
    return "".join(f"deb {' '.join(words)}\n" for words in sorted(found))


def transport() -> list[str]:
    """How this machine's apt reaches its sources (proxies and the like), for the root's apt."""
    settings = run("apt-config", "dump", "--format", '%f "%v";%n', "Acquire::http", "Acquire::https").splitlines()
    return [f"--aptopt={line}" for line in settings if '""' not in line]


def install(root: Path, cache: Path) -> None:
    """A bootstrapped Debian with the packages of packages.txt in `root`; archives are kept in `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    archives = "/var/cache/apt/archives"
    hooks = [
        f'--setup-hook=mkdir -p "$1{archives}"', f"--setup-hook=sync-in {cache.resolve()} {archives}/",
        # Read when PostgreSQL's package makes its cluster.
        '--essential-hook=mkdir -p "$1/etc/postgresql-common"',
        f'--essential-hook=cp {HERE / "createcluster.conf"} "$1/etc/postgresql-common/"',
        f"--customize-hook=sync-out {archives} {cache.resolve()}",
    ]  # fmt: skip
    words = [
        "mmdebstrap", "--mode=root", "--variant=essential", "--quiet",
        f"--include={','.join(packages.listed(HERE / 'packages.txt'))}",
        '--aptopt=Apt::Install-Recommends "false"', '--aptopt=Acquire::Retries "3"', *transport(),
        *(f"--dpkgopt=path-exclude={path}" for path in NOT_WANTED),
        "--skip=download/empty", "--skip=essential/unlink", *hooks, SUITE, str(root), "-",
    ]  # fmt: skip
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH), "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(words, input=sources(), capture_output=True, text=True, timeout=1800, env=environment)
    except FileNotFoundError:
        raise BuildError("mmdebstrap is not installed: run `make setup` first") from None
    if done.returncode:
        raise BuildError(f"mmdebstrap: {done.stderr.strip()[-2000:]}")


def put(root: Path, path: str, data: bytes, mode: int = 0o644) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.write_bytes(data)
    target.chmod(mode)


def furnish(root: Path, work: Path) -> None:
    """Our own first process, services, checks and settings."""
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    put(root, "sbin/init", (HERE / "init").read_bytes(), 0o755)
    for program, source in (("guestd", GUEST / "guestd.c"), ("checkd", HERE / "checkd.c")):
        recipe.compile_static(source, work / program)
        put(root, f"usr/lib/holdfast/{program}", (work / program).read_bytes(), 0o755)
    put(root, "usr/lib/holdfast/database", (HERE / "database").read_bytes(), 0o755)
    put(root, "usr/lib/holdfast/network", (GUEST / "network").read_bytes())
    for check in sorted((HERE / "checks").iterdir()):
        put(root, f"usr/lib/holdfast/checks/{check.name}", check.read_bytes(), 0o755)
    put(root, "etc/redis/redis.conf", (HERE / "redis.conf").read_bytes())
    put(root, "etc/postgresql/15/main/conf.d/holdfast.conf", (HERE / "postgresql.conf").read_bytes())
    put(root, "etc/postgresql/15/main/pg_hba.conf", (HERE / "pg_hba.conf").read_bytes())
    put(root, "etc/fstab", b"")
    put(root, "etc/hostname", b"holdfast-guest\n")
    put(root, "srv/www/blob.bin", recipe.blob())
    put(root, "srv/www/index.html", b"holdfast guest\n")


def prepare_database(root: Path) -> None:
    """Runs prepare.sql in the cluster, without a server. Raises BuildError."""
    words = ["chroot", str(root), "setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups",
             "/usr/lib/postgresql/15/bin/postgres", "--single", "-D", f"/{CLUSTER}",
             "-c", "config_file=/etc/postgresql/15/main/postgresql.conf",
             "-c", "dynamic_shared_memory_type=mmap", "postgres"]  # fmt: skip  (the root has no /dev/shm)
    done = subprocess.run(words, input=(HERE / "prepare.sql").read_text(), capture_output=True, text=True, timeout=120)
    if done.returncode or "ERROR" in done.stderr:
        raise BuildError(f"prepare.sql: {done.stderr.strip()}")
    controls = run("chroot", root, "/usr/lib/postgresql/15/bin/pg_controldata", "-D", f"/{CLUSTER}")
    if "Data page checksum version:           1" not in controls:
        raise BuildError("the cluster has no data checksums")


def lighten(root: Path) -> None:
    """Remove what the build left and no guest needs."""
    for folder in ("var/cache/apt", "var/lib/apt/lists", "var/log", "run"):
        for path in (root / folder).glob("*"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for compiled in root.glob("usr/**/__pycache__"):
        shutil.rmtree(compiled)


def make_file_system(root: Path, image: Path) -> None:
    """`root` as an ext4 file system. Nothing is left for the guest to initialise later."""
    size = int(SIZE.removesuffix("G")) << 30
    with image.open("wb") as file:
        file.truncate(size)
    os.environ["E2FSPROGS_FAKE_TIME"] = str(EPOCH or 1)  # 0 would mean the present
    try:
        run("mke2fs", "-q", "-F", "-t", "ext4", "-L", "holdfast", "-U", UUID, "-J", "size=16", "-m", "0",
            "-E", f"hash_seed={HASH_SEED},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0", "-d", root, image)
    finally:
        del os.environ["E2FSPROGS_FAKE_TIME"]


def initramfs(root: Path) -> bytes:
    """Drivers, and just enough to go on from the disk."""
    tree = Tree()
    for name in ("proc", "sys", "dev", "root"):
        tree.folder(name)
    tree.device("dev/console", 5, 1)
    tree.add("bin/busybox", (root / "bin/busybox").read_bytes(), 0o755)
    for applet in APPLETS:
        tree.link(f"bin/{applet}", "busybox")
    tree.add("init", (HERE / "boot").read_bytes(), 0o755)
    tree.add_modules(modules(root, MODULES))
    return tree.cpio()


def build(out: Path, cache: Path) -> None:
    if os.geteuid() != 0:
        raise BuildError("a system is installed and its files have owners: run this as root")
    boot = packages.fetch(cache, BOOT_PACKAGES)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".work-") as name:
        work = Path(name)
        packages.unpack(boot.values(), work / "boot")
        install(work / "root", cache / "disk")
        furnish(work / "root", work)
        prepare_database(work / "root")
        installed = run("chroot", work / "root", "dpkg-query", "-W", "-f", "${Package} ${Version}\n")
        lighten(work / "root")
        make_file_system(work / "root", work / "disk.img")
        (work / "disk.img").replace(out / "disk.img")
        kernel = recipe.kernel_of(work / "boot")
        recipe.put(out / "vmlinuz", kernel.read_bytes())
        recipe.put(out / "initrd.img", initramfs(work / "boot"))
        manifest = {
            "kernel": kernel.name.removeprefix("vmlinuz-"),
            "append": (HERE / "cmdline").read_text().strip(),
            "disk": {"file": "disk.img", "format": "raw", "bytes": (out / "disk.img").stat().st_size},
            "sha256": {"/blob.bin": recipe.digest(recipe.blob())},
            "packages": {**packages.versions(boot), **dict(line.split() for line in installed.splitlines())},
        }
    recipe.put_manifest(out, manifest)


if __name__ == "__main__":
    sys.exit(recipe.main(build, __doc__.splitlines()[0]))
