"""Where a tail stands is known to the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtap_consumers.errors import InputError
from runtap_consumers.kafka.places import Place, Places

TOPIC = "runtap.events"


def kept(path: Path, topic: str = TOPIC) -> dict[int, Place]:
    with Places(path, topic) as places:
        return places.places


def test_places_are_kept_from_the_first_moment_and_after_every_record(tmp_path: Path) -> None:
    path = tmp_path / "position"
    assert kept(path) == {}
    with Places(path, TOPIC) as places:
        places.begin({0: 1_000_000, 1: 0})
        assert kept(path) == {0: Place(1_000_000, None), 1: Place(0, None)}
        places.move(1, 7, 1_790_000_000_000_000_000)
        assert kept(path) == {0: Place(1_000_000, None), 1: Place(8, 1_790_000_000_000_000_000)}


def test_shorter_content_leaves_nothing_of_the_longer_behind(tmp_path: Path) -> None:
    path = tmp_path / "position"
    with Places(path, TOPIC) as places:
        places.begin(dict.fromkeys(range(50), 10**12))
    with Places(path, TOPIC) as places:
        places.begin({0: 3})
        assert kept(path) == {0: Place(3, None)}


def test_what_a_log_is_known_by_stays_only_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "position"
    with Places(path, TOPIC) as places:
        places.begin({0: 0, 1: 0})
        places.move(0, 4, 17)
        places.move(1, 4, 18)
    with Places(path, TOPIC) as places:
        places.begin({0: 5, 1: 0, 2: 0})
    assert kept(path) == {0: Place(5, 17), 1: Place(0, None), 2: Place(0, None)}


def test_places_of_another_topic_mean_nothing(tmp_path: Path) -> None:
    path = tmp_path / "position"
    with Places(path, TOPIC) as places:
        places.begin({0: 5})
    assert kept(path, "another.events") == {}


def test_file_that_cannot_be_used_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "position"
    path.write_bytes(b'{"topic": "runtap.events", "partitions": {"0": [1')
    with pytest.raises(InputError, match=r"cannot read .*position.*Remove it"):
        Places(path, TOPIC)
    with pytest.raises(InputError, match=r"cannot write .*nowhere"):
        Places(tmp_path / "nowhere" / "position", TOPIC)
