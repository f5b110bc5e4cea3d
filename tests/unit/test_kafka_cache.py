"""Kafka's jars are brought once, whole or not at all, however many processes want them."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runtap_demo.errors import KafkaJarsMissingError
from runtap_demo.kafka import kafka_cache
from runtap_demo.kafka.kafka_cache import Jar, KafkaFiles, kafka_files, listed_jars

CONTENT = b"a jar"
JARS = [Jar("group", f"artifact-{number}", "1.0", hashlib.sha256(CONTENT).hexdigest()) for number in range(5)]


class Maven:
    """Stands for jgo: hands out `content` for every artifact, into the repository folder it was given."""

    asked = 0
    content = CONTENT
    # Two downloads at once both get past "is it there?".
    meeting: threading.Barrier | None = None

    def __init__(self, repo_cache: Path, **_: object) -> None:
        self._folder = repo_cache
        if Maven.meeting is not None:
            Maven.meeting.wait(timeout=10)

    def project(self, group: str, artifact: str) -> Any:
        Maven.asked += 1
        return _Artifact(self._folder / f"{artifact}.jar")


class _Artifact:
    def __init__(self, path: Path) -> None:
        self._path = path

    def at_version(self, version: str) -> _Artifact:
        return self

    def artifact(self) -> _Artifact:
        return self

    def resolve(self) -> Path:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_bytes(Maven.content)
        return self._path


def _touch_checkpoint(kafka: KafkaFiles, scratch: Path) -> None:
    kafka.bootstrap_checkpoint.write_bytes(b"")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and a Maven that answers from memory."""
    monkeypatch.setenv("RUNTAP_KAFKA_CACHE", str(tmp_path))
    monkeypatch.setattr(kafka_cache, "MavenContext", Maven)
    monkeypatch.setattr(kafka_cache, "listed_jars", lambda: JARS)
    monkeypatch.setattr(kafka_cache, "_make_checkpoint", _touch_checkpoint)
    monkeypatch.setattr(Maven, "asked", 0)
    return tmp_path


def test_second_call_asks_nobody(cache: Path) -> None:
    first = kafka_files()
    assert Maven.asked == len(JARS)
    assert kafka_files() == first
    assert Maven.asked == len(JARS)
    assert sorted(path.name for path in (first.folder / "jars").iterdir()) == [jar.file_name for jar in JARS]


def test_two_at_once_both_get_the_same_whole_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Maven, "meeting", threading.Barrier(2))
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: kafka_files(), range(2))
    assert one == other
    assert Maven.asked == 2 * len(JARS)
    assert [path.name for path in cache.iterdir()] == [one.folder.name]


def test_a_folder_that_lacks_a_jar_is_made_again(cache: Path) -> None:
    folder = kafka_files().folder
    (folder / "jars" / JARS[0].file_name).unlink()
    assert (kafka_files().folder / "jars" / JARS[0].file_name).read_bytes() == CONTENT


def test_a_jar_with_other_bytes_leaves_nothing_behind(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Maven, "content", b"another jar")
    with pytest.raises(KafkaJarsMissingError, match="SHA-256") as caught:
        kafka_files()
    assert caught.value.version == kafka_cache.KAFKA_VERSION
    assert list(cache.iterdir()) == []


def test_another_aot_cache_belongs_to_copied_jars(cache: Path, tmp_path: Path) -> None:
    folder = kafka_files().folder
    copied = folder.rename(folder.parent / "copied")
    assert KafkaFiles(copied).aot_cache.name != KafkaFiles(copied.rename(folder)).aot_cache.name


def test_listed_jars_are_of_one_kafka_version_with_a_hash_each() -> None:
    jars = listed_jars()
    assert {jar.version for jar in jars if jar.group == "org.apache.kafka"} == {kafka_cache.KAFKA_VERSION}
    assert all(len(bytes.fromhex(jar.sha256)) == 32 for jar in jars)
    assert len({jar.file_name for jar in jars}) == len(jars)
