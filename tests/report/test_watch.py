"""`lambda-grpo watch`: a real server on a free port, asked as a browser would."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from rollout_samples import BY_HAND, write_jsonl, write_run

from lambda_grpo import cli
from lambda_grpo.report import ReportOptions, watch, write_report
from lambda_grpo.report.watch import LivePage, WatchServer


@contextmanager
def serving(run, pause=0.0):
    with WatchServer(LivePage(run, ReportOptions(skip_bad=True), pause), 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def ask(port, path="/", method="GET", **headers):
    """Status, headers and text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def content(page):
    return json.loads(page.partition('id="data">')[2].partition("</script>")[0])


def add_step(run, step):
    """A later step of the run, as its process writes it: aside, then renamed."""
    other = write_run(run.parent / f"other-{step}", steps=step + 1, groups=2)
    name = f"step-{step:06d}-rank-0.parquet"
    return Path(shutil.copy(other / "rollouts" / name, run / "rollouts" / name))


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "_PAUSE_PER_SECOND", 0.0)
    return write_run(tmp_path / "run", steps=2, groups=2)


def test_the_page_is_the_report(run, tmp_path):
    twin = write_report([run], tmp_path / "r.html").json
    with serving(run) as port:
        status, headers, page = ask(port)
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert headers["X-Frame-Options"] == "DENY"
        assert content(page) == json.loads(twin.read_text())
        status, headers, nothing = ask(port, method="HEAD")
        assert (status, int(headers["Content-Length"]), nothing) == (200, len(page.encode()), "")
        version = ask(port, "/changed")[2]
    assert f'<body data-version="{version}">' in page


def test_a_written_report_asks_nothing(run, tmp_path):
    """Only the page that is served may ask its server, and it has the script that does."""
    written = write_report([run], tmp_path / "r.html").html.read_text()
    with serving(run) as port:
        served = ask(port)[2]
    for sign in ("connect-src", "/changed", "data-version"):
        assert sign in served
        assert sign not in written


@pytest.mark.parametrize(
    "path", ["/report.html", "/rollouts/", "/..", "/%2e%2e/etc/passwd", "/changed/", "/?a"]
)
def test_nothing_else_is_served(run, path):
    with serving(run) as port:
        assert ask(port, path)[0] == 404


def test_only_reading(run):
    with serving(run) as port:
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "CONNECT"):
            assert ask(port, method=method)[0] == 501


@pytest.mark.parametrize("path", ["/", "/changed"])
def test_another_host_is_refused(run, path):
    """A name that a stranger points at 127.0.0.1; the port is the browser's, which a tunnel may change."""
    with serving(run) as port:
        for host in ("127.0.0.1", "localhost", f"LOCALHOST:{port}", "localhost:9000"):
            assert ask(port, path, Host=host)[0] == 200
        for host in (
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1.evil.example",
            "localhost@evil.example",
            "",
        ):
            status, _, text = ask(port, path, Host=host)
            assert (status, "data" in text) == (403, False), host


def test_new_rollouts_change_the_page(run):
    with serving(run) as port:
        first, version = content(ask(port)[2]), ask(port, "/changed")[2]
        assert ask(port, "/changed")[2] == version
        add_step(run, 2)
        assert ask(port, "/changed")[2] != version
        again = content(ask(port)[2])
    assert (first["groups_total"], again["groups_total"]) == (4, 6)


def test_rebuilding_waits_and_the_version_with_it(run, monkeypatch):
    """Within the pause the old page keeps its old version, so that no browser loads it over and over."""
    now = [100.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    page = LivePage(run, ReportOptions(), pause=3)
    first, version = page.page(), page.version()
    add_step(run, 2)
    now[0] += 2.9
    assert (page.page(), page.version()) == (first, version)
    now[0] += 0.2
    assert page.version() != version
    assert page.page() != first


def test_rebuilding_takes_a_tenth_of_the_time(tmp_path, monkeypatch):
    """A page that takes 2 s is built again after 18 s at the earliest."""
    now = [100.0]
    made = watch.report_content
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(watch, "report_content", lambda *g: now.append(now.pop() + 2) or made(*g))
    run = write_run(tmp_path / "run", steps=2, groups=2)
    page = LivePage(run, ReportOptions())
    first = page.page()
    add_step(run, 2)
    now[0] += 17.9
    assert page.page() == first
    now[0] += 0.2
    assert page.page() != first


def test_nothing_is_built_while_nobody_asks_or_nothing_changed(run, monkeypatch):
    built = []
    made = watch.report_content
    monkeypatch.setattr(watch, "report_content", lambda *given: built.append(0) or made(*given))
    with serving(run) as port:
        add_step(run, 2)
        ask(port, "/changed")
        assert len(built) == 0
        ask(port)
        ask(port)
        assert len(built) == 1


def test_a_half_written_file_is_counted_and_read_once_it_is_whole(run):
    whole = add_step(run, 2)
    content_of_file = whole.read_bytes()
    with serving(run) as port:
        for part in (b"", content_of_file[:3], content_of_file[: len(content_of_file) // 2]):
            whole.write_bytes(part)
            shown = content(ask(port)[2])
            left = shown["left_out"]  # three bytes are taken for a line of JSON
            assert (shown["groups_total"], left["files"] + left["rows"]) == (4, 1)
        whole.write_bytes(content_of_file)
        shown = content(ask(port)[2])
        assert (shown["groups_total"], shown["left_out"]["files"]) == (6, 0)


def test_the_run_goes_and_comes_back(run):
    with serving(run) as port:
        before = content(ask(port)[2])
        away = run.rename(run.with_name("away"))
        assert "No rollouts yet" in ask(port)[2]
        waiting = ask(port, "/changed")[2]
        (run / "rollouts").mkdir(parents=True)
        assert ask(port, "/changed")[2] == waiting
        for file in (away / "rollouts").iterdir():
            shutil.copy(file, run / "rollouts")
        assert ask(port, "/changed")[2] != waiting
        assert content(ask(port)[2]) == before


def test_the_reason_to_wait_is_text(tmp_path):
    folder = tmp_path / "<img src=x>"
    write_jsonl(folder / "r.jsonl", [{"group": 0, "completion": "alone", "reward": 1}])
    with serving(folder) as port:
        page = ask(port)[2]
    assert "No rollouts yet" in page
    assert "&lt;img src=x&gt;" in page
    assert "<img" not in page


def refused(capsys, *arguments):
    assert cli.main(["watch", *map(str, arguments)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_a_busy_port_is_one_sentence(run, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} of 127.0.0.1 is in use: name another one" in refused(capsys, run, "--port", port)
    assert "--port: got 70000, expected 0 to 65535" in refused(capsys, run, "--port", 70000)


def test_a_folder_without_a_run_is_one_sentence(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("nothing")
    assert f"{tmp_path}: holds no run: expected" in refused(capsys, tmp_path)
    assert "nowhere: no such file or folder" in refused(capsys, tmp_path / "nowhere")
    assert "--group_size: got 1, expected at least 2" in refused(capsys, tmp_path, "--group-size", 1)


@pytest.mark.parametrize("groups", [0, -1])
def test_a_page_without_groups_is_refused(run, capsys, groups):
    assert f"groups: got {groups}, expected at least 1" in refused(capsys, run, "--groups", groups)


def test_a_reward_to_be_right_at_that_is_no_number_is_refused(run, capsys):
    assert "correct_at: got nan, expected a finite number" in refused(capsys, run, "--correct_at", "nan")


def test_the_command_waits_for_rollouts_and_ends_with_ctrl_c(tmp_path):
    (tmp_path / "config.yaml").write_text("max_steps: 5\n")
    command = [sys.executable, "-m", "lambda_grpo.cli", "watch", str(tmp_path), "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heeds = partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # what runs in the background ignores Ctrl-C
    with subprocess.Popen(command, preexec_fn=heeds, **pipes) as process:
        try:
            line = process.stdout.readline()
            port = int(line.partition("http://127.0.0.1:")[2].partition("/")[0])
            assert "No rollouts yet" in ask(port)[2]
            write_jsonl(tmp_path / "rollouts" / "r.jsonl", BY_HAND)
            time.sleep(0.1)
            os.kill(process.pid, signal.SIGINT)
            _, said = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, said) == (0, "")


def test_help_loads_nothing_heavy():
    code = "import sys; from lambda_grpo import cli\ntry: cli.main(['watch', '--help'])\nexcept SystemExit: pass\n"
    code += "print(*sorted({'torch', 'transformers', 'trl', 'pyarrow', 'jinja2', 'tokenizers'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "--port" in shown
    assert shown.splitlines()[-1] == ""
