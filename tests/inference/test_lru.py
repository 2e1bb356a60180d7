"""The store that every cache is built on."""

import threading

from videollama2.inference.lru import LruStore


def test_the_least_recently_used_goes_first_and_touching_counts_as_use():
    store = LruStore(3)
    for key in "abc":
        store.put(key, key.upper())
    store.touch("a")
    assert store.get("b") == "B"
    store.put("d", "D")
    assert "c" not in store and store.get("c") is None
    assert list(store.values()) == ["A", "B", "D"]
    assert (store.hits, store.misses, len(store), store.used_size) == (1, 1, 3, 3)


def test_sizes_are_those_of_the_values():
    store = LruStore(10, len)
    store.put("a", "xxxx")
    store.put("b", "yyyy")
    store.put("a", "zz")
    assert store.used_size == 6
    store.put("big", "x" * 11)
    assert store.used_size == 6 and "big" not in store
    store.put("b", "x" * 11)
    assert store.used_size == 2 and "b" not in store, "an old value under this key would be a wrong one"
    store.make_room(9)
    assert len(store) == store.used_size == 0


def test_room_is_made_for_a_value_and_no_more():
    store = LruStore(10, len)
    for key in "abcde":
        store.put(key, "xx")
    store.make_room(3)
    assert "".join(key for key in "abcde" if key in store) == "cde"
    store.drop("d")
    store.drop("gone")
    assert store.used_size == 4
    store.clear()
    assert store.used_size == len(store) == 0


def test_nothing_is_kept_in_a_store_of_size_0():
    store = LruStore(0, len)
    store.put("a", "x")
    assert store.get("a") is None


def test_threads_may_share_it():
    store = LruStore(50, len)

    def work(number):
        for i in range(2000):
            store.put((number, i % 20), "x" * (i % 9))
            store.get((number, (i + 7) % 20))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.used_size == sum(map(len, store.values())) <= 50
    assert store.hits + store.misses == 8000
