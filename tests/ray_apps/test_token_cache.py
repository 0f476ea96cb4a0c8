"""The cache of principals, and authentication by it while the access list changes, fails or hangs."""

import asyncio
import threading

import pytest

from tests.ray_apps.admissions import admission_of
from toque.ray_apps.predictor.http.auth import TokenAuthenticator
from toque.ray_apps.predictor.protocol.errors import Denied, NotReady
from toque.ray_apps.token_cache import TokenCache, bearer_token
from toque.registry import Grant, Principal, Role, Unavailable


class AccessList:
    """An access list that can be changed, switched off, and counts its readers."""

    def __init__(self) -> None:
        self.tokens = {"good": Principal(name="bot", grants=(Grant(role=Role.caller),))}
        self.reads = 0
        self.away = False

    def verify(self, token: str) -> Principal | None:
        self.reads += 1
        if self.away:
            raise Unavailable("no route to host")
        return self.tokens.get(token)

    def recall(self, token: str) -> Principal | None:
        return self.tokens.get(token)

    def recognises(self, token: str) -> bool:
        return not token.startswith("malformed")


class Hanging(AccessList):
    """An access list that answers only while `go_on` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def verify(self, token: str) -> Principal | None:
        assert self.go_on.wait(60)
        return super().verify(token)


async def test_a_token_is_looked_up_once_and_revoked_within_two_rechecks():
    now, tokens = [0.0], AccessList()
    cache = TokenCache(tokens, recheck_s=1.0, clock=lambda: now[0])
    auth = TokenAuthenticator(admission_of(cache))
    for _ in range(5):
        await auth.admit(b"Bearer good")
    assert tokens.reads == 1
    tokens.tokens.clear()
    now[0] = 1.5
    await auth.admit(b"Bearer good")  # answered from the cache, verified again in the background
    await cache.settled()
    with pytest.raises(Denied):
        await auth.admit(b"Bearer good")
    assert tokens.reads == 2


async def test_an_expired_entry_is_verified_before_it_is_used():
    now, tokens = [0.0], AccessList()
    cache = TokenCache(tokens, recheck_s=1.0, clock=lambda: now[0])
    auth = TokenAuthenticator(admission_of(cache))
    await auth.admit(b"Bearer good")
    tokens.tokens.clear()
    now[0] = 3600.0
    with pytest.raises(Denied):
        await auth.admit(b"Bearer good")


async def test_while_the_access_list_is_away_known_tokens_are_admitted_and_unknown_ones_are_not():
    now, tokens = [0.0], AccessList()
    cache = TokenCache(tokens, recheck_s=1.0, clock=lambda: now[0])
    auth = TokenAuthenticator(admission_of(cache))
    await auth.admit(b"Bearer good")
    tokens.away, now[0] = True, 10.0
    await auth.admit(b"Bearer good")
    with pytest.raises(NotReady, match="cannot be read"):
        await auth.admit(b"Bearer new")


async def test_while_the_access_list_hangs_known_tokens_are_admitted_until_it_answers():
    now, tokens = [0.0], Hanging()
    cache = TokenCache(tokens, recheck_s=1.0, patience_s=0.01, clock=lambda: now[0])
    auth = TokenAuthenticator(admission_of(cache))
    tokens.go_on.set()
    await auth.admit(b"Bearer good")
    tokens.go_on.clear()
    for now[0] in (10.0, 10.1, 20.0):
        await auth.admit(b"Bearer good")
    tokens.tokens.clear()
    tokens.go_on.set()
    await cache.settled()
    with pytest.raises(Denied):
        await auth.admit(b"Bearer good")


async def test_while_the_access_list_hangs_a_token_new_to_the_process_is_found_in_the_list_read_last():
    tokens = Hanging()
    tokens.tokens["poor"] = Principal(name="reader", grants=(Grant(role=Role.viewer),))
    cache = TokenCache(tokens, patience_s=0.01)
    auth = TokenAuthenticator(admission_of(cache))
    try:
        await auth.admit(b"Bearer good")
        with pytest.raises(Denied) as refusal:
            await auth.admit(b"Bearer poor")
        assert refusal.value.status == 403
        with pytest.raises(NotReady, match="cannot be read now"):
            await auth.admit(b"Bearer made-since")
    finally:
        tokens.go_on.set()
    await cache.settled()
    with pytest.raises(Denied):
        await auth.admit(b"Bearer made-since")


async def refused(auth: TokenAuthenticator, token: str) -> None:
    with pytest.raises(Denied):
        await auth.admit(f"Bearer {token}".encode())


async def test_a_flood_of_wrong_tokens_neither_grows_the_cache_nor_pushes_a_known_one_out():
    tokens = AccessList()
    cache = TokenCache(tokens, recheck_s=3600)
    auth = TokenAuthenticator(admission_of(cache))
    await auth.admit(b"Bearer good")
    for i in range(5_000):
        await refused(auth, f"wrong-{i}")
    tokens.away = True
    await auth.admit(b"Bearer good")  # would need the access list if it had been evicted
    assert len(cache._wrong) == 512
    assert len(cache._known) == 1


async def test_a_text_without_the_form_of_a_token_is_refused_without_a_look_up():
    tokens = AccessList()
    auth = TokenAuthenticator(admission_of(TokenCache(tokens)))
    await refused(auth, "malformed")
    assert tokens.reads == 0


async def test_a_wrong_token_is_looked_up_again_once_it_may_have_been_created():
    now, tokens = [0.0], AccessList()
    auth = TokenAuthenticator(admission_of(TokenCache(tokens, recheck_s=1.0, clock=lambda: now[0])))
    await refused(auth, "new")
    await refused(auth, "new")
    assert tokens.reads == 1
    tokens.tokens["new"], now[0] = tokens.tokens["good"], 1.5
    await auth.admit(b"Bearer new")


async def test_wrong_tokens_that_hang_take_neither_threads_nor_memory_from_known_ones():
    now, tokens = [0.0], Hanging()
    cache = TokenCache(tokens, recheck_s=1.0, patience_s=0.01, clock=lambda: now[0])
    auth = TokenAuthenticator(admission_of(cache))
    tokens.go_on.set()
    await auth.admit(b"Bearer good")
    tokens.go_on.clear()
    flood = [asyncio.ensure_future(auth.admit(f"Bearer wrong-{i}".encode())) for i in range(600)]
    outcomes = await asyncio.gather(*flood, return_exceptions=True)
    assert {type(each) for each in outcomes} == {NotReady}
    assert len(cache._first_checks) == 256
    tokens.tokens["fresh"] = tokens.tokens["good"]
    await auth.admit(b"Bearer fresh")  # by the list read last
    tokens.go_on.set()
    await cache.settled()
    assert not cache._first_checks


@pytest.mark.parametrize(
    ("header", "token"),
    [
        (b"Bearer abc", "abc"),
        (b"bearer  abc ", "abc"),
        (b"Basic abc", None),
        (b"Bearer ", None),
        (b"", None),
        (None, None),
    ],
)
def test_a_bearer_token_is_read_from_its_header(header, token):
    assert bearer_token(header) == token
