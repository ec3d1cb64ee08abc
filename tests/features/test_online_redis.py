"""What only a server can do wrong: be away, be emptied, be written by several processes; and how often it is asked."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import redis
from test_online import COUNT, COUNTED, LOOKUPS, START, a_trip, count_at
from worlds import FEATURES, HOUR, text

from ct import settings
from ct.errors import InvalidSettings, Unavailable
from ct.features import online
from ct.features.online import OnlineStore
from ct.features.online.redis import RedisShelf
from ct.features.transform import transform


def test_settings_name_the_server(redis_url, tmp_path):
    place = settings.load(tmp_path, environ={}, online_url=redis_url)
    assert online.in_use(place)
    store = online.opened(place)
    assert store.push(COUNTED, "trips", a_trip(0)) == 1
    store.close()
    again = online.opened(place)
    assert count_at(again, START + HOUR) == 1.0
    again.close()
    assert not place.online.exists()


def test_a_request_is_one_round_trip(redis_url):
    store = OnlineStore(RedisShelf(redis_url))
    asked = {
        "town": text(["A"]),
        "line": text(["1"]),
        "leg": np.array([1.0]),
        "leg2": np.array([1.0]),
        "leaves": np.array([START]),
    }
    store.history(asked, LOOKUPS)
    client = redis.Redis.from_url(redis_url)

    def calls() -> int:
        return sum(entry["calls"] for name, entry in client.info("commandstats").items() if name.startswith("cmdstat_evalsha"))

    store.push(LOOKUPS, "trips", a_trip(0))
    for rows in ({**asked, "town": text(["B"])}, asked, asked):  # an entity not yet known, fresh rows to be told, nothing new
        before = calls()
        transform(FEATURES, rows, rows["leaves"] + HOUR, store.history(rows, LOOKUPS))
        assert calls() == before + 1
    store.close()


def test_a_server_that_was_emptied_is_seen_to_be_empty_and_can_be_filled_again(redis_url):
    store = OnlineStore(RedisShelf(redis_url))
    store.push(COUNTED, "trips", a_trip(0))
    assert count_at(store, START + HOUR) == 1.0
    redis.Redis.from_url(redis_url).flushall()
    assert count_at(store, START + HOUR) == 0.0
    store.push(COUNTED, "trips", a_trip(1))
    assert count_at(store, START + HOUR) == 1.0
    store.close()


def test_several_writers_lose_nothing(redis_url):
    stores = [OnlineStore(RedisShelf(redis_url)) for _ in range(4)]

    def work(at: int) -> int:
        new = 0
        for number in range(40):
            new += stores[at].push(COUNTED, "trips", a_trip(number // 2 + 10 * at))
            count_at(stores[at], START + HOUR)
        return new

    with ThreadPoolExecutor(4) as pool:
        new = sum(pool.map(work, range(4)))
    assert new == 50, "each of the 50 different rows was new once"
    assert [count_at(store, START + HOUR) for store in stores] == [50.0] * 4
    for store in stores:
        store.close()


def test_threads_of_one_process_share_what_it_remembers(redis_url):
    store, writer = OnlineStore(RedisShelf(redis_url)), OnlineStore(RedisShelf(redis_url))

    def work(number: int) -> float:
        if number % 2:
            writer.push(COUNTED, "trips", a_trip(number))
        return count_at(store, START + HOUR)

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(work, range(80)))
    assert max(seen) <= 40.0
    assert count_at(store, START + HOUR) == 40.0
    store.close()
    writer.close()


def test_a_server_that_is_away_is_named_without_its_password():
    with pytest.raises(Unavailable) as caught:
        RedisShelf("redis://:hunter2@127.0.0.1:1/0")
    assert "127.0.0.1" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_url_of_another_kind_is_refused():
    with pytest.raises(InvalidSettings, match="online_url"):
        RedisShelf("http://localhost")


def test_without_the_client_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(InvalidSettings, match=r"ct\[redis\]"):
        RedisShelf("redis://localhost")


def test_trimming_forgets_entities_that_have_nothing_left(redis_url):
    store = OnlineStore(RedisShelf(redis_url))
    store.push(COUNTED, "trips", a_trip(0, START))
    store.push(COUNTED, "trips", {**a_trip(1, START + 9 * HOUR), "town": text(["B"])})
    assert store.trim(START + 10 * HOUR) == 1
    (held,) = store.freshness()
    assert (store.size(held.name).rows, store.size(held.name).entities) == (1, 1)
    assert not [key for key in redis.Redis.from_url(redis_url).scan_iter() if key.endswith(b":A")]
    assert COUNT.compute({"town": text(["B"])}, np.array([START + 10 * HOUR]), store)["late_count_by_town_6h"].tolist() == [1.0]
    store.close()
