import hashlib
import http.server
import multiprocessing
import tempfile
import threading
import time
from dataclasses import replace
from functools import partial

import huggingface_hub.constants
import pytest
import torch
from fewstep.eval.extractors.weights import (
    MissingWeights,
    WeightsFile,
    cache_folder,
    find,
    places,
    sha256_of,
)

CONTENT = b"numbers" * 300_000


def published(content=CONTENT, **changes):
    file = WeightsFile(
        what="weights of a test",
        names=("first.bin", "second.bin"),
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        urls=(),
        variable="FEWSTEP_TEST_WEIGHTS",
        elsewhere=("{cache}/other/a.bin", "{torch}/b.bin", "{temporary}/c.bin"),
        instead="take --extractor pixels",
    )
    return replace(file, **changes)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "FEWSTEP_OFFLINE", "FEWSTEP_WEIGHTS_REPO"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path


def written(path, content=CONTENT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def url_of(folder, content):
    return written(folder / "server" / hashlib.sha256(content).hexdigest(), content).as_uri()


def test_sha256_of_a_file(home):
    # FIPS 180-2, appendix B.1.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(written(home / "abc", b"abc")) == expected


def test_places_in_order(home):
    assert places(published(also=(published(names=("third.bin",), elsewhere=()),))) == [
        home / "cache/fewstep/weights/first.bin",
        home / "cache/fewstep/weights/second.bin",
        home / "torch/hub/checkpoints/first.bin",
        home / "torch/hub/checkpoints/second.bin",
        home / "cache/other/a.bin",
        home / "torch/b.bin",
        home / "temporary/c.bin",
        home / "cache/fewstep/weights/third.bin",
        home / "torch/hub/checkpoints/third.bin",
    ]


def test_the_first_right_copy_is_taken():
    file = published()
    for place in reversed(places(file)):
        written(place)
        assert find(file, offline=True) == (place, file.sha256)


def test_a_wrong_copy_in_a_cache_is_passed_over():
    file = published()
    first, second, third, *_ = places(file)
    written(first, CONTENT[:-1])
    written(second, b"N" + CONTENT[1:])
    # Also where unverified files are allowed: nobody asked for this one.
    with pytest.raises(MissingWeights):
        find(file, offline=True, allow_unverified=True)
    written(third)
    assert find(file, offline=True).path == third


def test_the_same_numbers_in_another_file_will_do():
    file = published(also=(published(b"other", names=("other.bin",)),))
    place = written(cache_folder() / "other.bin", b"other")
    assert find(file) == (place, hashlib.sha256(b"other").hexdigest())
    assert find(file, place) == (place, hashlib.sha256(b"other").hexdigest())


def test_a_given_path_precedes_the_variable_and_that_the_caches(home, monkeypatch):
    file = published()
    written(places(file)[0])
    variable, given = written(home / "variable"), written(home / "given")
    monkeypatch.setenv(file.variable, str(variable))
    assert find(file).path == variable
    assert find(file, given).path == given


@pytest.mark.parametrize("content", [CONTENT[:-1], b"N" + CONTENT[1:]], ids=["short", "other"])
def test_a_wrong_file_that_was_asked_for_is_an_error(home, content, monkeypatch):
    file = published()
    # No right copy elsewhere may stand in for it.
    written(places(file)[0])
    path = written(home / "given", content)
    found = hashlib.sha256(content).hexdigest()
    pattern = (
        f"(?s){len(content):,} bytes, sha256 {found}.*{file.size:,} bytes, sha256 {file.sha256}"
    )
    with pytest.raises(ValueError, match=pattern):
        find(file, path)
    assert find(file, path, allow_unverified=True) == (path, found)
    monkeypatch.setenv(file.variable, str(path))
    with pytest.raises(ValueError, match=found):
        find(file)


def test_a_given_path_must_exist(home):
    file = published()
    written(places(file)[0])
    with pytest.raises(MissingWeights, match="nowhere: no such file"):
        find(file, home / "nowhere", allow_unverified=True)
    with pytest.raises(MissingWeights, match="not a file"):
        find(file, home)


def test_missing_weights_say_all_that_helps():
    other = published(b"other", names=("other.bin",), urls=("https://two.invalid/x",))
    file = published(urls=("https://one.invalid/x",), also=(other,))
    written(places(file)[1], CONTENT[:-1])
    with pytest.raises(MissingWeights) as caught:
        find(file, offline=True)
    text = str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)
    for version in file.versions:
        for part in (*version.names, *version.urls, version.sha256, f"{version.size:,}"):
            assert part in text
    for part in (*places(file), file.what, file.variable, file.instead, "offline"):
        assert str(part) in text
    assert f"found {file.size - 1:,} bytes, expected {file.size:,}" in text


@pytest.mark.parametrize("variable", ["FEWSTEP_OFFLINE", "HF_HUB_OFFLINE"])
def test_no_download_when_offline(home, variable, monkeypatch):
    file = published(urls=(url_of(home, CONTENT),))
    monkeypatch.setenv(variable, "1")
    with pytest.raises(MissingWeights):
        find(file)
    monkeypatch.setenv(variable, "0")
    with pytest.raises(MissingWeights):
        find(file, offline=True)
    assert find(file).path.read_bytes() == CONTENT


def test_a_download_goes_into_our_cache_and_is_found_there(home):
    file = published(urls=(url_of(home, CONTENT),))
    # Damaged before, by another program: it is replaced.
    written(places(file)[0], b"damaged")
    found = find(file)
    assert found == (cache_folder() / "first.bin", file.sha256)
    assert found.path.read_bytes() == CONTENT
    assert find(file, offline=True) == found


def test_the_next_address_is_tried(home):
    urls = (
        (home / "nowhere").as_uri(),
        url_of(home, CONTENT[:-1]),
        url_of(home, b"N" + CONTENT[1:]),
        url_of(home, CONTENT + b"more"),
    )
    with pytest.raises(MissingWeights) as caught:
        find(published(urls=urls))
    text = str(caught.value)
    assert f"{urls[0]}: <urlopen error" in text
    assert f"{urls[1]}: found {len(CONTENT) - 1:,} bytes" in text
    assert f"{urls[2]}: found sha256 {hashlib.sha256(b'N' + CONTENT[1:]).hexdigest()}" in text
    assert f"{urls[3]}: found {len(CONTENT) + 1:,} bytes" in text
    assert [path.suffix for path in cache_folder().iterdir()] in ([], [".lock"])
    assert find(published(urls=(*urls, url_of(home, CONTENT)))).path.read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written_is_told(home):
    file = published(urls=(url_of(home, CONTENT),))
    written(home / "cache/fewstep", b"a file where the folder should be")
    with pytest.raises(MissingWeights, match=r"download: .*fewstep"):
        find(file)


def test_the_cache_of_the_hugging_face_hub(home, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
    folder = home / "hub/models--owner--name"
    place = written(folder / "snapshots/abc/second.bin")
    written(folder / "refs/main", b"abc")
    file = published()
    with pytest.raises(MissingWeights):
        find(file, offline=True)
    monkeypatch.setenv("FEWSTEP_WEIGHTS_REPO", "owner/name")
    assert find(file, offline=True).path == place


class Slow(http.server.SimpleHTTPRequestHandler):
    """Long enough for the other process to come by."""

    def do_GET(self):
        self.server.served.append(self.path)
        time.sleep(0.3)
        super().do_GET()

    def log_message(self, *_):
        pass


def find_into(queue, barrier, file):
    barrier.wait()
    queue.put(find(file))


def test_processes_download_once(home):
    written(home / "server/x")
    handler = partial(Slow, directory=home / "server")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.served = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        file = published(urls=(f"http://127.0.0.1:{server.server_port}/x",))
        # Forked, because a new interpreter takes seconds to import torch.
        context = multiprocessing.get_context("fork")
        queue, barrier = context.Queue(), context.Barrier(2)
        processes = [context.Process(target=find_into, args=(queue, barrier, file)) for _ in "ab"]
        for process in processes:
            process.start()
        found = [queue.get(timeout=20) for _ in processes]
        for process in processes:
            process.join(20)
        server.shutdown()
    assert found == [(cache_folder() / "first.bin", file.sha256)] * 2
    assert found[0].path.read_bytes() == CONTENT
    assert server.served == ["/x"]
