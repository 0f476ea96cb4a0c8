from pathlib import Path

import pytest

from toque.clusters.redis_clients import InvalidRedisUrl, RedisAddress, open_redis, redis_url_of


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "where"),
    [
        ("redis://localhost", "server", (("localhost", 6379),), "localhost:6379"),
        ("rediss://u:p@10.0.0.5:7/3", "server", (("10.0.0.5", 7),), "10.0.0.5:7"),
        (
            "redis+sentinel://u:p@h1:5,h2/0?service=rows",
            "sentinel",
            (("h1", 5), ("h2", 26379)),
            "h1:5,h2:26379 (Sentinel, service rows)",
        ),
        (
            "rediss+cluster://[::1]:7000,h2:7001",
            "cluster",
            (("::1", 7000), ("h2", 7001)),
            "[::1]:7000,h2:7001 (Cluster)",
        ),
        ("unix:///run/redis.sock?db=2", "socket", (), "/run/redis.sock"),
    ],
)
def test_a_url_names_its_kind_and_hosts(
    url: str, kind: str, hosts: tuple[tuple[str, int], ...], where: str
) -> None:
    address = RedisAddress.of(url)
    assert (address.kind, address.hosts, address.where) == (kind, hosts, where)
    assert address.tls is url.startswith("rediss")


def test_user_password_database_and_settings_are_read() -> None:
    url = "redis://ann:p%40w@h/3?socket_timeout=2.5&max_connections=9&ssl_check_hostname=no"
    address = RedisAddress.of(url)
    assert (address.username, address.password, address.db) == ("ann", "p@w", 3)
    assert address.settings == {"socket_timeout": 2.5, "max_connections": 9, "ssl_check_hostname": False}
    assert "p@w" not in repr(address)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://h", "scheme 'http' is not known; write redis://"),
        ("redis+ring://h", r"scheme .redis\+ring. is not known"),
        ("redis://a,b", "2 hosts 'a,b' for one server; write redis\\+sentinel"),
        ("redis://h:x", "host 'h:x' .*; write host:port"),
        ("redis://", "host '' is empty; write host:port"),
        ("redis://h/x", "database 'x' is not a number; end the url with /0"),
        ("redis+cluster://h/1", "database 1; a Cluster has only 0"),
        ("redis+sentinel://h", r"service=''; a \+sentinel url ends with \?service=NAME"),
        ("redis://h?service=rows", "service='rows'; .* no other url has it"),
        ("redis://h?sock=1", "setting sock='1' is not known here; known are client_name"),
        ("redis://h?sentinel_auth=none", "setting sentinel_auth='none' is not known here"),
        ("redis://h?patience=long", "patience='long' is not a number"),
        ("redis://h?ssl_cert_reqs=maybe", "ssl_cert_reqs='maybe'; write one of required, none"),
    ],
)
def test_a_url_that_cannot_work_is_refused_by_part_value_and_remedy(url: str, message: str) -> None:
    with pytest.raises(InvalidRedisUrl, match=message):
        RedisAddress.of(url)


def test_certificates_are_looked_for_where_the_client_is_opened(tmp_path: Path) -> None:
    with pytest.raises(InvalidRedisUrl, match=r"ssl_ca_certs='/absent\.pem' is not a file here"):
        open_redis("rediss://h?ssl_ca_certs=/absent.pem")
    with pytest.raises(InvalidRedisUrl, match="ssl_certfile without TLS; begin the url with rediss"):
        open_redis(f"redis://h?ssl_certfile={tmp_path}")


def test_the_password_of_a_file_is_merged_into_the_url(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("s3c/ret@\n")
    url = "rediss+sentinel://ann@h1:1,h2:2/0?service=rows"
    found = redis_url_of({"TOQUE_REDIS_URL": url, "TOQUE_REDIS_PASSWORD_FILE": str(file)})
    assert found is not None
    address = RedisAddress.of(found)
    assert (address.username, address.password) == ("ann", "s3c/ret@")
    assert (address.hosts, address.service) == ((("h1", 1), ("h2", 2)), "rows")
    file.write_text("another")
    assert redis_url_of({"TOQUE_REDIS_URL": found, "TOQUE_REDIS_PASSWORD_FILE": str(file)}) == found
    assert redis_url_of({"TOQUE_REDIS_PASSWORD_FILE": str(file)}) is None


@pytest.mark.parametrize(("text", "message"), [(None, "No such file"), (" \n", "the file is empty")])
def test_a_password_file_that_gives_no_password_is_named(
    tmp_path: Path, text: str | None, message: str
) -> None:
    file = tmp_path / "password"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InvalidRedisUrl, match=f"TOQUE_REDIS_PASSWORD_FILE={file}: {message}"):
        redis_url_of({"TOQUE_REDIS_URL": "redis://h", "TOQUE_REDIS_PASSWORD_FILE": str(file)})
