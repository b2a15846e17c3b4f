"""What may be sent to addresses that callers name, and that a listener in here hears nothing."""

import time

import pytest

from fluxline.errors import InvalidParams
from fluxline.server.outside import ANSWER_S, LONGEST_URL, Outside, Unreachable

HOSTILE = [
    "http://example.com/",
    "https://127.0.0.1/",
    "https://127.1/",
    "https://0177.0.0.1/",
    "https://0x7f.0.0.1/",
    "https://2130706433/",
    "https://0/",
    "https://0.0.0.0/",
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://192.168.1.1/",
    "https://100.64.0.1/",
    "https://169.254.169.254/latest/meta-data",
    "https://224.0.0.1/",
    "https://255.255.255.255/",
    "https://[::]/",
    "https://[::1]/",
    "https://[fe80::1]/",
    "https://[fc00::1]/",
    "https://[ff02::1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[2002:7f00:1::]/",
    "https://localhost/",
    "https://LOCALHOST./",
    "https://ok\\@127.0.0.1/",
    "https://example.com\\@127.0.0.1/",
    "https://ok@127.0.0.1/",
    "https://u:p@example.com/",
    "https://example.com:99999/",
    "https://①②⑦.0.0.1/",
    "https:///etc/passwd",
    "https://",
    "file:///etc/passwd",
    "gopher://127.0.0.1/",
    "//example.com/",
    "example.com",
    "",
    "https://exa mple.com/",
    "https://example.com/" + "a" * LONGEST_URL,
]


@pytest.mark.parametrize("url", HOSTILE)
async def test_a_hostile_url_is_refused_and_never_sent_to(url, listener):
    async def inside(host, port):  # whatever it is called, it is in here
        return ["127.0.0.1"]

    with pytest.raises(Unreachable):
        await Outside("*", resolve=inside).post(url, b"{}", {})
    assert listener.heard == []


async def test_a_name_that_leads_inside_is_not_followed(listener):
    async def rebound(host, port):
        return ["93.184.216.34", "127.0.0.1"]

    with pytest.raises(Unreachable, match="may not lead to"):
        await Outside("*", resolve=rebound).post("https://example.com/", b"{}", {})


def test_a_host_that_is_not_named_is_refused():
    with pytest.raises(InvalidParams, match=r"may not lead to example\.org"):
        Outside("example.com").check("https://example.org/", "webhook_url")


def test_without_hosts_all_is_refused_with_the_way_out():
    with pytest.raises(InvalidParams, match="--webhook-hosts"):
        Outside("").check("https://example.com/", "webhook_url")


async def test_a_host_that_the_operator_named_may_be_in_here(listener):
    outside = Outside("127.0.0.1")
    url = f"http://127.0.0.1:{listener.port}/done?x=1"
    outside.check(url, "webhook_url")
    await outside.post(url, b'{"a": 1}', {"webhook-id": "7"})

    [(head, body)] = listener.heard
    assert head.startswith(b"POST /done?x=1 HTTP/1.1\r\n")
    assert f"host: 127.0.0.1:{listener.port}".encode() in head.lower()
    assert body == b'{"a": 1}'


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n", "302"),
        (b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", "answered 500"),
        (b"\x00\x01", "could not be reached"),
    ],
)
async def test_only_2xx_is_an_acknowledgement(answer, why, listener):
    listener.answer = answer
    with pytest.raises(Unreachable, match=why):
        await Outside("127.0.0.1").post(f"http://127.0.0.1:{listener.port}/", b"{}", {})
    assert len(listener.heard) == 1


async def test_an_endless_answer_is_not_read(listener):
    listener.answer = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2**26
    began = time.monotonic()
    await Outside("127.0.0.1").post(f"http://127.0.0.1:{listener.port}/", b"{}", {})
    assert len(listener.heard) == 1
    assert time.monotonic() - began < ANSWER_S


async def test_who_does_not_answer_is_not_waited_for(listener, monkeypatch):
    monkeypatch.setattr("fluxline.server.outside.ANSWER_S", 0.05)
    listener.answer = None
    with pytest.raises(Unreachable, match="did not answer"):
        await Outside("127.0.0.1").post(f"http://127.0.0.1:{listener.port}/", b"{}", {})
