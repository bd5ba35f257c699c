"""Downloads from a real server on this machine that breaks, lies and changes."""
import errno
import hashlib
import json
import logging
import multiprocessing
import os
import socket
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from util import download as module
from util.download import Download, SecureRedirects, cache_folder, cache_name, cached, hash_in_name
from util.errors import UserError

DATA = bytes(range(256)) * 2000  # 512,000 bytes
SHA = hashlib.sha256(DATA).hexdigest()


class Server:
    """Serves `data` under every path. break_after: bytes after which each of the next `breaks` connections ends. plan:
    what the next requests are answered with instead, a status, a (status, headers) or a function of the handler."""

    def __init__(self, tls=None):
        self.data, self.etag, self.ranges, self.length = DATA, '"one"', True, True
        self.break_after, self.breaks, self.plan, self.requests, self.headers = 0, 0, [], [], {}
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                owner.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls:
            self.http.socket = tls.wrap_socket(self.http.socket, server_side=True)
        self.http.daemon_threads, self.http.handle_error = True, lambda *args: None
        self.address = f"{'https' if tls else 'http'}://localhost:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler):
        asked = handler.headers.get("Range")
        self.requests.append((handler.path, asked, handler.headers.get("If-Range")))
        if self.plan:
            planned = self.plan.pop(0)
            if callable(planned):
                return planned(handler)
            status, headers = planned if isinstance(planned, tuple) else (planned, {})
            return self.send(handler, status, headers, b"busy")
        headers = {"ETag": self.etag} if self.etag else {}
        if asked and self.ranges and handler.headers.get("If-Range") in (None, self.etag):
            first = int(asked.removeprefix("bytes=").removesuffix("-"))
            if first >= len(self.data):
                return self.send(handler, 416, {}, b"")
            content = f"bytes {first}-{len(self.data) - 1}/{len(self.data)}"
            return self.send(handler, 206, headers | {"Content-Range": content}, self.data[first:])
        return self.send(handler, 200, headers, self.data)

    def send(self, handler, status, headers, body):
        handler.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} if self.length else {}).items():
            handler.send_header(name, value)
        for name, value in (headers | self.headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        if self.breaks and status < 300:
            self.breaks -= 1
            body = body[:self.break_after]
        handler.wfile.write(body)


@pytest.fixture
def make_server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    servers = []

    def make(tls=None):
        servers.append(Server(tls))
        return servers[-1]

    yield make
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


@pytest.fixture
def server(make_server):
    return make_server()


@pytest.fixture
def get(server, tmp_path):
    """get(): fetches from the server to a file, as `Download.to`; returns the content."""
    def get(sha256="", size=None, path="/model.pth", timeout=5.0):
        target = tmp_path / "model.pth"
        Download(pause=0, timeout=timeout).to(target, server.address + path, sha256, size)
        return target.read_bytes()

    return get


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def ranges(server):
    return [asked for _, asked, _ in server.requests]


def test_a_file_is_written_with_a_record_and_told(get, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert get() == DATA and names(tmp_path) == ["model.pth", "model.pth.json"]
    record = json.loads((tmp_path / "model.pth.json").read_text())
    assert record["sha256"] == SHA and record["size"] == len(DATA) and record["address"].endswith("/model.pth")
    assert f"no sha256 is published for it; recorded {SHA}" in caplog.text


def test_a_connection_that_breaks_is_continued(get, server):
    server.breaks, server.break_after = 3, 100_000
    assert get(SHA) == DATA
    assert ranges(server) == [None, "bytes=100000-", "bytes=200000-", "bytes=300000-"]
    assert server.requests[1][2] == '"one"'


def test_the_next_call_continues_what_the_last_one_got(get, server, tmp_path):
    server.breaks, server.break_after = 1, 300_000
    server.plan = [lambda handler: server.send(handler, 200, {"ETag": '"one"'}, DATA), *[503] * 10]
    with pytest.raises(UserError, match="answers 503 .*; 0.3 MB of it are kept for the next try. Without a network, "
                                        f"put the file at {tmp_path}/model.pth"):
        get()
    assert names(tmp_path) == ["model.pth.partial", "model.pth.partial.json"]
    server.plan, server.requests = [], []
    assert get() == DATA and ranges(server) == ["bytes=300000-"]
    assert names(tmp_path) == ["model.pth", "model.pth.json"]


def test_a_file_that_changes_between_two_connections_is_not_glued_together(get, server):
    def breaks_and_changes(handler):
        server.breaks, server.break_after = 1, 200_000
        server.send(handler, 200, {"ETag": '"one"'}, DATA)
        server.data, server.etag = DATA[::-1], '"two"'

    server.plan = [breaks_and_changes]
    assert get() == DATA[::-1] and ranges(server) == [None, "bytes=200000-"]


def test_a_server_that_ignores_if_range_does_not_glue_them_either(get, server):
    def breaks_and_changes(handler):
        server.breaks, server.break_after = 1, 200_000
        server.send(handler, 200, {"ETag": '"one"'}, DATA)
        server.data = DATA[::-1]

    def another_range(handler):
        server.send(handler, 206, {"ETag": '"two"', "Content-Range": "bytes 200000-511999/512000"}, DATA[::-1][200000:])

    server.plan = [breaks_and_changes, another_range]
    assert get() == DATA[::-1] and ranges(server) == [None, "bytes=200000-", None]


@pytest.mark.parametrize("content_range", ["bytes 5-511999/512000", "nonsense", ""])
def test_another_range_than_the_one_asked_for_is_not_used(get, server, content_range):
    server.breaks, server.break_after = 1, 200_000
    server.plan = [lambda handler: server.send(handler, 200, {"ETag": '"one"'}, DATA),
                   lambda handler: server.send(handler, 206, {"Content-Range": content_range}, DATA[5:])]
    assert get() == DATA and ranges(server) == [None, "bytes=200000-", None]


@pytest.mark.parametrize("ranges_too", [True, False])
def test_without_identity_or_without_ranges_all_is_fetched_again(get, server, ranges_too):
    server.breaks, server.break_after = 1, 200_000
    server.ranges = ranges_too
    server.etag = "" if ranges_too else '"one"'
    assert get() == DATA and ranges(server) == [None, None if ranges_too else "bytes=200000-"]


def test_a_known_hash_allows_to_continue_without_identity_and_catches_a_change(get, server, caplog):
    server.etag, server.breaks, server.break_after = "", 1, 200_000
    server.plan = [lambda handler: server.send(handler, 200, {}, DATA[::-1])]  # an older version
    assert get(SHA) == DATA and ranges(server) == [None, "bytes=200000-", None]
    assert "the parts do not fit each other" in caplog.text


def test_parts_of_another_address_are_not_continued(get, server, tmp_path):
    (tmp_path / "model.pth.partial").write_bytes(b"x" * 100)
    (tmp_path / "model.pth.partial.json").write_text(json.dumps({"address": "https://x/y", "identity": '"one"'}))
    assert get() == DATA and ranges(server) == [None]


def test_parts_that_are_longer_than_the_file_are_discarded(get, server, tmp_path):
    (tmp_path / "model.pth.partial").write_bytes(b"x" * len(DATA))
    record = {"address": f"{server.address}/model.pth", "identity": '"one"'}
    (tmp_path / "model.pth.partial.json").write_text(json.dumps(record))
    assert get() == DATA and ranges(server) == [f"bytes={len(DATA)}-", None]


@pytest.mark.parametrize("record", [
    "{", "[1]", '{"identity": 3}', "\x00", '{"address": "ADDRESS", "identity": "a\\nb"}',
    '{"address": "ADDRESS", "identity": "\\ud800"}', '{"address": "ADDRESS"}'])
def test_a_damaged_record_means_to_begin_again(get, server, tmp_path, record):
    (tmp_path / "model.pth.partial").write_bytes(b"x" * 100)
    (tmp_path / "model.pth.partial.json").write_text(record.replace("ADDRESS", f"{server.address}/model.pth"))
    assert get() == DATA and ranges(server) == [None]


def test_a_wrong_hash_is_refused_and_nothing_stays(get, tmp_path):
    with pytest.raises(UserError, match=f"sha256 of its content starts with {SHA[:8]} instead of 00000000"):
        get("0" * 64)
    assert not {"model.pth", "model.pth.partial"} & set(names(tmp_path))


def test_a_wrong_hash_ends_also_when_every_connection_breaks(get, server):
    server.breaks, server.break_after = 1000, 200_000
    with pytest.raises(UserError, match="instead of 00000000"):
        get("0" * 8)
    assert len(server.requests) == 6


def test_a_wrong_size_is_refused_before_anything_is_loaded(get, server):
    with pytest.raises(UserError, match="it has 512000 bytes instead of 512001"):
        get(size=len(DATA) + 1)
    assert len(server.requests) == 1


def test_a_length_that_is_never_reached_is_an_error(get, server, monkeypatch):
    server.plan = [lambda handler: server.send(handler, 200, {}, DATA[:1000])] * 9
    server.length, server.headers = False, {"Content-Length": "2000"}
    with pytest.raises(UserError, match="the connection ended after 1000 of 2000 bytes"):
        get()


def test_without_a_length_a_known_size_is_checked(get, server):
    server.length = False
    assert get() == DATA
    server.breaks, server.break_after = 1, 5
    assert get(size=len(DATA)) == DATA


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 408])
def test_a_busy_server_is_asked_again(get, server, status):
    server.plan = [status, (status, {"Retry-After": "0"})]
    assert get() == DATA and len(server.requests) == 3


@pytest.mark.parametrize("status", [404, 403, 401, 410])
def test_a_refusal_is_told_at_once(get, server, status):
    server.plan = [status]
    with pytest.raises(UserError, match=rf"cannot download {server.address}/model.pth: the server answers {status}"):
        get()
    assert len(server.requests) == 1


def test_pauses_grow_and_follow_the_server(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    server.plan = [500, 500, (503, {"Retry-After": "7"}), (503, {"Retry-After": "9999"})]
    Download().to(tmp_path / "x", server.address)
    assert waits == [1, 2, 7, 30]


def test_an_answer_that_does_not_come_is_asked_for_again(get, server):
    hung = threading.Event()
    server.plan = [lambda handler: hung.wait(5)]
    assert get(timeout=0.3) == DATA
    hung.set()


def test_a_stream_that_stalls_is_continued(get, server):
    hung = threading.Event()

    def stalls(handler):
        handler.send_response(200)
        handler.send_header("ETag", '"one"')
        handler.send_header("Content-Length", str(len(DATA)))
        handler.end_headers()
        handler.wfile.write(DATA[:4096])
        hung.wait(5)

    server.plan = [stalls]
    assert get(timeout=0.3) == DATA and len(server.requests) == 2
    hung.set()


def test_a_connection_that_is_reset_is_tried_again(get, server):
    server.plan = [lambda handler: handler.connection.close(), lambda handler: handler.wfile.write(b"\x00nonsense\n")]
    assert get() == DATA


def test_nobody_there(tmp_path):
    with pytest.raises(UserError, match="cannot download http://localhost:9/x: .*refused"):
        Download(pause=0).to(tmp_path / "x", "http://localhost:9/x")
    with pytest.raises(UserError, match="cannot download http://nowhere.invalid/x: "):
        Download(pause=0).to(tmp_path / "x", "http://nowhere.invalid/x")
    assert names(tmp_path) == []


@pytest.mark.parametrize("reason, tries", [(socket.gaierror(socket.EAI_NONAME, "no name"), 1),
                                           (socket.gaierror(socket.EAI_AGAIN, "try again"), 5)])
def test_only_what_may_pass_is_tried_again(tmp_path, reason, tries):
    asked = []

    def open(request, timeout):
        asked.append(request)
        raise urllib.error.URLError(reason)

    with pytest.raises(UserError, match=f"{reason.strerror}. Without a network, put the file at {tmp_path}/x"):
        Download(open, pause=0).to(tmp_path / "x", "https://example.org/x")
    assert len(asked) == tries


def test_a_web_page_is_no_file(get, server, tmp_path):
    server.headers = {"Content-Type": "text/html; charset=utf-8"}
    with pytest.raises(UserError, match="answers with a web page"):
        get()
    assert names(tmp_path) == []


def test_redirects_are_followed(get, server):
    server.plan = [(302, {"Location": "/elsewhere/blob?signature=x"})]
    server.breaks, server.break_after = 1, 1000
    assert get(SHA) == DATA
    assert [path for path, _, _ in server.requests] == ["/model.pth", "/elsewhere/blob?signature=x", "/model.pth"]


def test_the_environments_proxy_is_used(server, make_server, tmp_path, monkeypatch):
    proxy = make_server()
    monkeypatch.setenv("http_proxy", proxy.address)
    Download(pause=0).to(tmp_path / "x", "http://weights.example/x.pth")
    assert proxy.requests == [("http://weights.example/x.pth", None, None)] and not server.requests
    assert (tmp_path / "x").read_bytes() == DATA


def test_a_full_disk_is_told_before(get, server, tmp_path, monkeypatch):
    usage = module.shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="it needs 1 MB, and the disk of .* has 0 MB left"):
        get()
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_is_told(get, tmp_path):
    (tmp_path / "model.pth.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match=rf"cannot write .*model.pth: {os.strerror(errno.ENOSPC)}"):
        get()


# The cache

@pytest.fixture
def tls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificate")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    try:
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out",
                        certificate],
                       check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs openssl")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(module.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def local(server):
    """A Download that asks the server for what stands behind https://weights.example."""
    def open(request, timeout):
        request.full_url = request.full_url.replace("https://weights.example", server.address)
        return urllib.request.urlopen(request, timeout=timeout)

    return Download(open, pause=0, timeout=5)


ADDRESS = "https://weights.example/a/model.pth"


def test_real_https_with_a_certificate_that_is_trusted_or_not(make_server, tls, cache, monkeypatch):
    server = make_server(tls[0])
    with pytest.raises(UserError, match="certificate verify failed"):
        cached(f"{server.address}/model.pth", download=Download(pause=0, timeout=5))
    context = ssl.create_default_context(cafile=tls[1])
    opener = urllib.request.build_opener(SecureRedirects, urllib.request.HTTPSHandler(context=context))
    trusting = Download(opener.open, pause=0, timeout=5)
    assert cached(f"{server.address}/model.pth", SHA, download=trusting).read_bytes() == DATA
    plain = make_server()
    server.plan = [(302, {"Location": f"{plain.address}/y"})]
    with pytest.raises(UserError, match="redirects to http://localhost.*, which is not https"):
        cached(f"{server.address}/other.pth", download=trusting)
    server.plan = [(302, {"Location": "/model-2.pth"})]
    assert cached(f"{server.address}/other.pth", download=trusting).read_bytes() == DATA and not plain.requests


@pytest.mark.parametrize("address", ["http://x/y.pth", "file:///etc/passwd", "ftp://x/y", "https://x/naïve.pth",
                                     "https://x/a b", "https://x/a\nb", "https://[::1/x", "https://x/\ud800"])
def test_only_https_is_fetched(cache, address):
    with pytest.raises(UserError, match="only https addresses"):
        cached(address)


@pytest.mark.parametrize("address", ["https://", "https:///x.pth", "https://x:port/y.pth"])
def test_an_address_without_a_host_is_told_at_once(cache, address, monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: pytest.fail("tries again"))
    with pytest.raises(UserError, match=f"cannot download {address}"):
        cached(address)


@pytest.mark.parametrize("place", ["http://[::1/x", "file:///etc/passwd", "http://localhost:port/x"])
def test_a_redirect_to_nowhere_is_told(get, server, place):
    server.plan = [(302, {"Location": place})] * 9
    with pytest.raises(UserError, match="cannot download"):
        get()
    assert len(server.requests) == 1


def test_a_file_is_fetched_once(cache, server, local, caplog):
    caplog.set_level(logging.INFO)
    path = cached(ADDRESS, download=local)
    assert path.parent == cache and path.read_bytes() == DATA
    assert cached(ADDRESS, download=local) == path and len(server.requests) == 1
    assert f"using the downloaded {path}" in caplog.text


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"x" + data[1:], lambda data: b""])
def test_a_damaged_file_is_fetched_again(cache, server, local, damage, caplog):
    path = cached(ADDRESS, download=local)
    path.write_bytes(damage(DATA))
    assert cached(ADDRESS, download=local).read_bytes() == DATA and len(server.requests) == 2
    assert f"the downloaded {path} is damaged" in caplog.text


def test_a_file_that_changed_on_the_server_is_told(cache, server, local, caplog):
    path = cached(ADDRESS, download=local)
    path.write_bytes(b"")
    server.data = DATA[::-1]
    assert cached(ADDRESS, download=local).read_bytes() == DATA[::-1]
    assert f"has changed: its sha256 was {SHA} and is now" in caplog.text


def test_without_a_network_what_is_there_is_used_and_checked(cache):
    cache.mkdir()
    offline = Download(lambda *args, **options: pytest.fail("asked the network"))
    (cache / cache_name(ADDRESS)).write_bytes(DATA)  # put there by hand
    assert cached(ADDRESS, SHA, download=offline).read_bytes() == DATA
    assert json.loads((cache / f"{cache_name(ADDRESS)}.json").read_text())["sha256"] == SHA
    (cache / cache_name(ADDRESS)).write_bytes(DATA[1:])
    refused = Download(lambda *args, **options: urllib.request.urlopen("http://localhost:9"), pause=0)
    with pytest.raises(UserError, match=f"cannot download {ADDRESS}: .*refused.* put the file at {cache}"):
        cached(ADDRESS, SHA, download=refused)


def test_the_hash_in_a_name_is_checked(cache, server, local):
    good = f"https://weights.example/detr-{SHA[:8]}.pth"
    assert cached(good, download=local).name == f"detr-{SHA[:8]}.pth"
    with pytest.raises(UserError, match="instead of e632da11"):
        cached("https://weights.example/detr-r50-e632da11.pth", download=local)


def test_a_folder_that_cannot_be_made_is_named(cache, local):
    cache.write_text("a file")
    with pytest.raises(UserError, match=f"cannot write to the folder of downloads {cache}: .*{module.CACHE}"):
        cached(ADDRESS, download=local)


def test_a_read_only_cache_serves_what_it_holds(cache, local, monkeypatch):
    path = cached(ADDRESS, download=local)
    Path(f"{path}.json").unlink()

    def refuse(*args):
        raise UserError("read-only")

    monkeypatch.setattr(module, "write_text", refuse)  # the tests may run as root, whom no permission stops
    assert cached(ADDRESS, download=local) == path


def test_several_processes_fetch_it_once_together(cache, server):
    server.breaks, server.break_after = 2, 200_000
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        found = pool.starmap(fetch_locally, [(server.address,)] * 4)
    assert found == [SHA] * 4 and len(server.requests) == 3


def fetch_locally(address):
    def open(request, timeout):
        request.full_url = request.full_url.replace("https://weights.example", address)
        return urllib.request.urlopen(request, timeout=timeout)

    path = cached(ADDRESS, download=Download(open, pause=0, timeout=5))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("address", [
    "https://x/..", "https://x/../../etc/passwd", "https://x/%2e%2e%2fetc", "https://x/a/..%5c..%5cb", "https://x/",
    "https://x", "https://x/a\\..\\b", "https://x/" + "a" * 5000 + ".pth", "https://x/.bashrc", "https://x/a?b=../../c",
    "https://x/a:b", "https://x/naïve.pth", "https://x/..-abcdef12.pth", "https://x/../-abcdef12.pth"])
def test_no_address_leads_out_of_the_cache(address):
    name = cache_name(address)
    assert name == Path(name).name and not {"/", "\\", ":"} & set(name) and 0 < len(name) < 200
    assert name[0] != "." or "abcdef12" in name


def test_names_tell_addresses_apart():
    assert cache_name("https://x/1/model.pth") != cache_name("https://x/2/model.pth")


@pytest.mark.parametrize("name, wanted", [
    ("detr-r50-e632da11.pth", "e632da11"), ("resnet50-0676ba61.pth", "0676ba61"), ("model-20231201.pth", ""),
    ("model.pth", ""), ("swin_tiny_patch4_window7_224.pth", ""), (f"x-{SHA}.safetensors", SHA), ("x-abc.pth", "")])
def test_hashes_in_names(name, wanted):
    assert hash_in_name(f"https://x/{name}") == wanted


def test_the_folder_is_chosen_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setattr(module.torch.hub, "_hub_dir", None)
    monkeypatch.delenv(module.CACHE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hub" / "checkpoints"
    monkeypatch.setenv(module.CACHE, "~/weights")
    assert cache_folder() == Path.home() / "weights"
