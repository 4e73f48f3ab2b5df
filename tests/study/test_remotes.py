"""Remotes of DVC: a folder, the same folder behind a web server that only reads, and an S3 server in memory."""

import functools
import http.server
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import repository
from tests.helpers.repository import run

pytestmark = pytest.mark.slow
RUN = Path("runs/shapes/shapes-s0-mib-2")
LOCAL = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
KEYS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def owner(study, tmp_path) -> Path:
    """A copy of the study, to which a test adds its remote."""
    repository.copy(study, tmp_path / "owner")
    return tmp_path / "owner"


def add_remote(folder: Path, url: str, **options: str) -> None:
    """The default remote, committed."""
    run(folder, "dvc", "remote", "add", "-d", "store", url)
    for name, value in options.items():
        run(folder, "dvc", "remote", "modify", "store", name, value)
    run(folder, "git", "commit", "-qam", "remote")


def clone(folder: Path, name: str) -> Path:
    """What git has of the repository, in a folder beside it."""
    run(folder, "git", "clone", "-q", ".", f"../{name}")
    return folder.parent / name


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below the folder, by its name there."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def serve(server) -> str:
    """The address of a web server that answers in a thread from now on."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def web(tmp_path, monkeypatch) -> Iterator[str]:
    """The address under which everybody can read the folder `store`."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "store")
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    for name, value in LOCAL.items():
        monkeypatch.setenv(name, value)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        yield serve(server)
        server.shutdown()


def test_a_second_clone_needs_no_training(owner, web):
    store = owner.parent / "store"
    add_remote(owner, str(store))
    (owner / "junk").write_text("no commit names it")
    run(owner, "dvc", "add", "junk")
    run(owner, "dvc", "push")
    full = set(contents(store))

    # --- gc removes what no commit names from cache and remote, and nothing else
    (junk,) = (name for name, content in contents(store).items() if content == b"no commit names it")
    run(owner, "dvc", "remove", "--outs", "junk.dvc")
    run(owner, "dvc", "gc", "--all-branches", "--all-tags", "--all-experiments", "--cloud", "--force")
    assert set(contents(store)) == full - {junk}
    assert not (owner / ".dvc" / "cache" / junk).exists()
    assert "up to date" in run(owner, "dvc", "push")

    # --- the clone has no weights of its own, so it could not train
    second = clone(owner, "second")
    run(second, "dvc", "pull")
    assert not (second / "data" / "weights").exists()
    lines = run(second, "dvc", "repro").splitlines()
    assert [line for line in lines if line.startswith("Running stage")] == ["Running stage 'report':"]
    assert contents(second / RUN) == contents(owner / RUN)
    assert run(second, "git", "status", "--porcelain") == ""

    # --- one run, from a server that only reads
    third = clone(owner, "third")
    run(third, "dvc", "remote", "add", "published", web)
    run(third, "dvc", "pull", "-r", "published", str(RUN))
    assert contents(third / RUN) == contents(owner / RUN)
    assert [folder.name for folder in (third / "runs" / "shapes").iterdir() if folder.is_dir()] == [RUN.name]


class S3Server:
    """Moto's S3 server, one request at a time. It kills `process` instead of storing the upload number `limit`."""

    def __init__(self, application):
        self.application, self.lock = application, threading.Lock()
        self.uploads: list[str] = []  # keys, in order
        self.process: subprocess.Popen | None = None
        self.limit = 0

    def __call__(self, request: dict, respond):
        with self.lock:
            if request["REQUEST_METHOD"] == "PUT":
                if self.process and len(self.uploads) + 1 >= self.limit:
                    self.process.kill()
                    respond("503 Service Unavailable", [])
                    return []
                self.uploads.append(request["PATH_INFO"])
            return self.application(request, respond)


@pytest.fixture
def s3(monkeypatch) -> Iterator[tuple[S3Server, str]]:
    """(the server with an empty bucket `ciss`, its address)"""
    pytest.importorskip("dvc_s3", reason="needs the extra s3")
    moto = pytest.importorskip("moto.moto_server.werkzeug_app", reason="needs moto[s3], flask and flask-cors")
    import boto3
    from werkzeug.serving import make_server

    for name, value in {**KEYS, **LOCAL}.items():
        monkeypatch.setenv(name, value)
    application = S3Server(moto.DomainDispatcherApplication(moto.create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True)
    address = serve(server)
    boto3.client("s3", endpoint_url=address).create_bucket(Bucket="ciss")
    application.uploads.clear()
    yield application, address
    server.shutdown()


def test_an_interrupted_push_to_s3_goes_on(owner, s3):
    server, address = s3
    add_remote(owner, "s3://ciss/study", endpointurl=address)
    push = ("dvc", "push", "base", "joint", "increment")
    server.limit = 20
    with subprocess.Popen(push, cwd=owner, env=repository.environment(owner), stderr=subprocess.DEVNULL) as process:
        server.process = process
    assert process.returncode == -9 and len(server.uploads) == server.limit - 1
    server.process = None
    assert "files pushed" in run(owner, *push)
    assert len(set(server.uploads)) == len(server.uploads) > 2 * server.limit, "nothing is sent twice"

    second = clone(owner, "second")
    run(second, "dvc", "pull", "increment")
    assert contents(second / RUN) == contents(owner / RUN)
