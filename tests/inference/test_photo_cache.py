"""The photo cache: never more bytes than allowed, photos in use stay, the least recently used go first."""

from pixellm.inference.photo_cache import PhotoCache


def keys(cache):
    return [key[0] for key in cache._photos]


def use(cache, name, num_bytes=10):
    photo = cache.acquire((name, ()), num_bytes)
    if photo is not None:
        cache.release(photo)
    return photo


def test_a_photo_that_comes_again_is_the_same_and_another_prompt_is_another():
    cache = PhotoCache(100)
    photo = use(cache, "a")
    assert use(cache, "a") is photo and cache.num_bytes == 10
    assert cache.acquire(("a", (5,)), 10) is not photo and cache.num_bytes == 20


def test_the_least_recently_used_goes_first():
    cache = PhotoCache(30)
    for name in "abc":
        use(cache, name)
    use(cache, "a")
    use(cache, "d")
    assert keys(cache) == ["c", "a", "d"] and cache.num_bytes == 30
    use(cache, "e", 25)
    assert keys(cache) == ["e"] and cache.num_bytes == 25


def test_photos_in_use_stay_and_hold_back_what_does_not_fit():
    cache = PhotoCache(30)
    held = cache.acquire(("a", ()), 10)
    use(cache, "b", 20)
    assert use(cache, "c", 21) is None and keys(cache) == ["a", "b"], "nothing is thrown out for what does not fit anyway"
    assert use(cache, "c", 20) is not None and keys(cache) == ["a", "c"]
    cache.release(held)
    assert use(cache, "d", 30) is not None and keys(cache) == ["d"]


def test_a_discarded_photo_is_computed_anew():
    cache = PhotoCache(30)
    photo = cache.acquire(("a", ()), 10)
    cache.discard(photo)
    cache.discard(photo)
    assert cache.num_bytes == 0 and use(cache, "a") is not photo
    cache.release(photo)
    assert cache.num_bytes == 10
