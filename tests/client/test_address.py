"""What a user may write for an address."""

import pytest

from forwardpass.address import parse
from forwardpass.errors import ClientMisused


@pytest.mark.parametrize(
    ("text", "target", "tls", "local"),
    [
        ("localhost", "dns:///localhost:8001", False, True),
        ("127.0.0.1:9000", "dns:///127.0.0.1:9000", False, True),
        ("127.9.9.9", "dns:///127.9.9.9:8001", False, True),
        ("models.prod.svc", "dns:///models.prod.svc:8001", False, False),
        ("grpc://models:8001", "dns:///models:8001", False, False),
        ("grpc://models:8001/", "dns:///models:8001", False, False),
        ("grpcs://models:443", "dns:///models:443", True, False),
        ("[::1]:8001", "dns:///[::1]:8001", False, True),
        ("::1", "dns:///[::1]:8001", False, True),
        ("10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2", False, False),
        ("127.0.0.1:1,127.0.0.1", "ipv4:127.0.0.1:1,127.0.0.1:8001", False, True),
        ("grpcs://10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2", True, False),
        ("[fd00::1]:1,[fd00::2]:2", "ipv6:[fd00::1]:1,[fd00::2]:2", False, False),
        ("dns:///models:8001", "dns:///models:8001", False, False),
        ("unix:/run/models.sock", "unix:/run/models.sock", False, True),
        ("unix:///run/models.sock", "unix:///run/models.sock", False, True),
    ],
)
def test_forms(text: str, target: str, tls: bool, local: bool) -> None:
    address = parse(text)
    assert (address.target, address.tls, address.local, address.text) == (target, tls, local, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://localhost:8000",
        "https://models",
        ":8001",
        "host:",
        "host:port",
        "host:99999",
        "host:-1",
        "host:0",
        "host/path:1",
        "user@host:1",
        "host:1?x",
        "a:1,b:2",
        "10.0.0.1:1,[::1]:2",
        "10.0.0.1:1,",
        "two words:1",
        "host:8001\n",
    ],
)
def test_what_is_none_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(ClientMisused, match=r"give host:port, grpc://"):
        parse(text)
